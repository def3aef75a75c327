"""What is declared at the keys: which may be others when a run goes on, who reads them, when they are idle."""

from __future__ import annotations

import pytest

from raydpo.config import Config
from raydpo.config.key_facts import Key, facts, free_keys, keys_that
from raydpo.config.outside import FORM
from raydpo.config.problems import all_keys, section_of
from raydpo.config.round_sections import JUDGE_FREE, JUDGES, GenerateSection, JudgeSection, RoundsSection
from raydpo.config.section_base import SectionBase

FREE_IN_TRAINING = """
    model.path model.revision reference.model reference.revision data.train data.eval data.chat_template
    data.num_workers run.dir run.resume
    run.runtime run.runtime_in_process run.wait_for_nodes_s
    run.stop_grace_s
    reference.cache_dir reference.num_workers reference.cpus_per_worker reference.gpus_per_worker reference.scheduling
    reference.rows_per_shard reference.weights reference.stream_tokens train.scheduling
    reference.tokens_per_batch reference.max_retries reference.hang_timeout_s train.cpus_per_worker train.tokens_per_microbatch
    train.activation_memory_gb train.eval_every train.save_every train.save_every_minutes train.save train.keep_checkpoints
    train.best_metric train.export
    train.verify_export train.max_shard_size
    train.num_workers train.zero_stage train.offload_optimizer train.offload_parameters
    train.sequence_parallel_size
    train.log_every train.sinks train.hang_timeout_s train.max_failures train.max_preemptions
    train.max_nonfinite_steps evaluate.model evaluate.kept_pairs evaluate.tie_tolerance_nats
    profile generate judge rounds
"""
FREE_IN_ROUNDS = """
    rounds.prompts rounds.eval_prompts rounds.num_rounds rounds.min_mean_score rounds.min_win_rate rounds.max_kl_nats
    rounds.save_every rounds.max_length_drift rounds.max_duplicate_share rounds.min_distinct_2 generate.num_workers
    generate.cpus_per_worker generate.gpus_per_worker generate.vllm generate.scheduling generate.max_retries
    generate.hang_timeout_s
"""
DECIDE = """
    run.seed model.dtype model.attention data.format data.columns data.ignore
    data.eval_fraction data.max_length data.overlong data.max_bad_fraction
    data.control_tokens data.bos data.eos data.confidence_column data.min_confidence data.unpair data.weight_column
    data.deduplicate data.chat_template_kwargs objective.name
    reference.sync_every reference.sync_alpha train.gpus_per_worker train.learning_rate train.schedule
    train.warmup_fraction train.global_batch_pairs train.epochs train.max_steps train.weight_decay train.adam_beta1
    train.adam_beta2 train.max_grad_norm train.deepspeed
    train.gradient_checkpointing train.compile train.lora.rank train.lora.alpha train.lora.target_modules train.lora.merge
    train.router_aux_loss
    train.lora.rslora train.lora.dora train.lora.init train.lora.experts train.lora.modules_to_save train.lora.dropout
    train.lora.quantize_base
    train.early_stopping_patience
"""


def test_what_may_change_when_a_training_goes_on() -> None:
    assert free_keys(Config, "training") == set(FREE_IN_TRAINING.split())


def test_what_may_change_when_rounds_go_on() -> None:
    kept = set(FREE_IN_TRAINING.split()) - {"generate", "rounds"}
    assert free_keys(Config, "rounds") == kept | set(FREE_IN_ROUNDS.split())


def test_every_other_key_decides_the_numbers() -> None:
    """A new key stands in one of the lists of this file, after somebody thought about it."""
    free = free_keys(Config, "training")
    others = [key for key in all_keys(Config) if not free & {key, key.rpartition(".")[0], key.partition(".")[0]}]
    assert {key for key in others if not key.startswith("objective.")} | {"objective.name"} == set(DECIDE.split())


def test_kinds_of_judges_and_their_keys() -> None:
    assert JUDGES == {
        "function": ((), ("function", "timeout_s")),
        "regex": (("pattern",), ("timeout_s",)),
        "exact": (("answers",), ()),
        "json": ((), ()),
        "length": (("target_length",), ()),
        "reward_model": (("model",), ("tokens_per_batch",)),
        "pairwise": (("model",), ("endpoint", "api_key_variable", "instruction", "max_tokens", "timeout_s", "vllm")),
        "ensemble": (("members",), ()),
    }
    of_pool = {"num_workers", "cpus_per_worker", "gpus_per_worker", "max_retries", "hang_timeout_s"}
    of_pool |= {"scheduling", "max_failed_fraction"}
    assert of_pool | {"timeout_s", "tokens_per_batch", "api_key_variable"} == JUDGE_FREE
    assert {key for key, fact in keys_that(JudgeSection) if fact.is_of_pool} == of_pool
    assert {key for key, fact in keys_that(JudgeSection) if fact.is_of_actors} == of_pool - {"max_failed_fraction"}


def test_keys_of_rounds_that_are_read_with_another() -> None:
    with_others = {key: (f.read_with.key, f.read_with.value) for key, f in keys_that(RoundsSection) if f.read_with}
    assert with_others == {"top_k": ("pairs", "top_k"), "ema_decay": ("reference", "ema")}
    looking = {key for key, fact in keys_that(RoundsSection) if fact.looks_at_eval_prompts}
    assert looking == {"min_mean_score", "min_win_rate", "max_kl_nats", "max_length_drift"}
    assert facts(GenerateSection, "temperature") == Key()


def sections(root: type[SectionBase]) -> list[type[SectionBase]]:
    inner = [found for field in root.model_fields.values() if (found := section_of(field.annotation)) is not None]
    return [root, *(deeper for section in inner for deeper in sections(section))]


@pytest.mark.parametrize("section", sections(Config), ids=lambda section: section.__name__)
def test_a_fact_is_said_once_and_names_what_there_is(section: type[SectionBase]) -> None:
    for name, field in section.model_fields.items():
        said = [each for each in field.metadata if isinstance(each, Key)]
        assert len(said) <= 1, name
        assert all(fact != Key() for fact in said), f"{name}: says what is so without a word"
        for fact in said:
            assert {*fact.needed_by, *fact.read_by} <= {*JUDGES, FORM}
            assert fact.read_with is None or fact.read_with.key in section.model_fields
            assert not fact.is_of_actors or (fact.is_of_pool and not fact.changes_score)
