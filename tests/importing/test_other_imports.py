"""LLaMA-Factory, Axolotl, ms-swift, OpenRLHF, NeMo-RL and open-instruct: a config of each, and what each refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.importing.draft import ALLOWED, IDLE, SAME, YOURS
from tests.importing.imports import fate, imported, problems, written

FACTORY = """
    model_name_or_path: Qwen/Qwen3-4B
    stage: dpo
    pref_loss: sigmoid
    pref_beta: 0.3
    pref_ftx: 0.5
    dpo_label_smoothing: 0.1
    lora_rank: 4
    dataset: mine
    template: qwen3
    cutoff_len: 512
    max_samples: 100
    per_device_train_batch_size: 2
    gradient_accumulation_steps: 4
    learning_rate: 5.0e-6
    lr_scheduler_type: cosine
    warmup_ratio: 0.1
    bf16: true
    plot_loss: true
"""


def test_llama_factory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    columns = {"prompt": "question", "chosen": "good", "rejected": "rejected"}
    info = {"mine": {"file_name": "mine.json", "ranking": True, "columns": columns}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    found, config = imported(tmp_path, "dpo.yaml", FACTORY)
    first, second = config.objective.terms
    assert (first.name, first.parameters) == ("dpo", {"beta": 0.3, "label_smoothing": 0.1})
    assert (second.name, second.weight) == ("nll", 0.5)
    assert config.data.train == ({"path": f"{tmp_path}/data/mine.json", "count": 100},)
    assert config.data.columns == {"prompt": "question", "chosen": "good"}
    assert config.train.lora is not None
    assert (config.train.lora.rank, config.train.lora.alpha, config.train.lora.target_modules) == (4, 8, "all-linear")
    assert config.train.global_batch_pairs == 8
    assert fate(found, "plot_loss") == IDLE
    assert fate(found, "template") == SAME


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ("pref_loss: kto_pair", "pref_loss"),
        ("template: alpaca", "template"),
        ("finetuning_type: freeze", "finetuning_type"),
        ("neat_packing: true", "neat_packing"),
        ("pissa_init: true", "pissa_init"),
    ],
    ids=["loss", "template", "freeze", "packing", "pissa"],
)
def test_llama_factory_refuses(change: str, option: str, tmp_path: Path) -> None:
    lines = [line for line in FACTORY.splitlines() if option not in line]
    told = problems(tmp_path, "dpo.yaml", "\n".join([*lines, f"    {change}"]), "data.train=[x.jsonl]")
    assert [text for text in told if f": {option}: " in text]
    assert len(told) == 1


def test_llama_factory_kto_and_simpo(tmp_path: Path) -> None:
    plain = "model_name_or_path: m/q\ndataset: o/d\nfinetuning_type: full\nper_device_train_batch_size: 1\n"
    kto = imported(tmp_path, "kto.yaml", plain + "stage: kto\nkto_chosen_weight: 0.7\n")[1].objective
    assert (kto.name, kto.parameters["desirable_weight"]) == ("kto", 0.7)
    simpo = imported(
        tmp_path, "simpo.yaml", plain + "stage: dpo\npref_loss: simpo\npref_beta: 2.0\nsimpo_gamma: 1.0\n"
    )[1]
    assert (simpo.objective.name, simpo.objective.parameters["gamma_beta_ratio"]) == ("simpo", 0.5)
    assert simpo.train.lora is None


AXOLOTL = """
    base_model: m/llama-3-8b-instruct
    rl: {rl}
    rl_beta: 0.2
    datasets:
      - path: o/d
        split: train_prefs
        type: chat_template.default
        field_messages: conversation
    chat_template: tokenizer_default
    sequence_len: 2048
    micro_batch_size: 2
    gradient_accumulation_steps: 4
    num_epochs: 2
    optimizer: {optimizer}
    lr_scheduler: cosine
    learning_rate: 2e-5
    warmup_ratio: 0.1
    val_set_size: 0.05
    bf16: auto
    wandb_project:
    special_tokens: {{eos_token: <|eot_id|>}}
"""


def test_axolotl(tmp_path: Path) -> None:
    found, config = imported(tmp_path, "a.yml", AXOLOTL.format(rl="dpo", optimizer="adamw_torch"), processes=2)
    assert config.objective.parameters["beta"] == 0.2
    assert (config.train.global_batch_pairs, config.train.epochs, config.train.learning_rate) == (16, 2, 2e-5)
    assert config.data.train == ("hub:o/d:train_prefs",)
    assert config.data.columns == {"prompt": "conversation"}
    assert (config.data.eval_fraction, config.data.eos) == (0.05, "<|eot_id|>")
    assert fate(found, "wandb_project") == IDLE


def test_axolotl_ipo_and_eight_bits(tmp_path: Path) -> None:
    assert (
        imported(tmp_path, "a.yml", AXOLOTL.format(rl="ipo", optimizer="adamw_torch"))[1].objective.name == "ipo_mean"
    )
    (problem,) = problems(tmp_path, "a.yml", AXOLOTL.format(rl="dpo", optimizer="adamw_bnb_8bit"))
    assert "optimizer: adamw_bnb_8bit" in problem
    found, _ = imported(tmp_path, "a.yml", AXOLOTL.format(rl="dpo", optimizer="adamw_bnb_8bit"), allowed=["optimizer"])
    assert fate(found, "optimizer") == ALLOWED
    assert "rl: grpo" in problems(tmp_path, "a.yml", AXOLOTL.format(rl="grpo", optimizer="adamw_torch"))[0]


SWIFT = """
    nproc_per_node=2
    CUDA_VISIBLE_DEVICES=0,1 \\
    NPROC_PER_NODE=$nproc_per_node \\
    swift rlhf \\
        --rlhf_type {kind} --model m/q --dataset 'o/d#500' --split_dataset_ratio 0.01 \\
        --tuner_type full --torch_dtype bfloat16 --learning_rate 1e-5 \\
        --per_device_train_batch_size 1 --gradient_accumulation_steps $(expr 16 / $nproc_per_node) \\
        --warmup_ratio 0.05 --deepspeed zero3 --max_length 2048 {more}
"""


def test_ms_swift(tmp_path: Path) -> None:
    found, config = imported(tmp_path, "s.sh", SWIFT.format(kind="dpo", more="--rpo_alpha 0.3"))
    assert [(term.name, term.weight) for term in config.objective.terms] == [("dpo", 1.0), ("sft", 0.3)]
    assert (config.train.global_batch_pairs, config.train.zero_stage) == (16, 3)
    assert (config.train.weight_decay, config.train.adam_beta2) == (0.1, 0.95)
    assert config.data.train == ({"path": "hub:o/d:train", "count": 500},)
    assert config.data.eval_fraction == 0.01
    assert any("ModelScope" in text for text in found.differences)


def test_ms_swift_simpo_has_defaults_of_its_own(tmp_path: Path) -> None:
    simpo = imported(tmp_path, "s.sh", SWIFT.format(kind="simpo", more=""))[1].objective
    assert simpo.parameters == {"beta": 2.0, "gamma_beta_ratio": 0.5}
    assert [(term.name, term.weight) for term in simpo.terms[1:]] == [("sft", 1.0)]


def test_ms_swift_refuses_packed_batches_and_other_trainings(tmp_path: Path) -> None:
    packed = SWIFT.format(kind="dpo", more="--packing true")
    assert "packing" in problems(tmp_path, "s.sh", packed)[0]
    found, config = imported(tmp_path, "s.sh", packed, "train.global_batch_pairs=8")
    assert (fate(found, "packing"), config.train.global_batch_pairs) == (YOURS, 8)
    assert "rlhf_type: grpo" in problems(tmp_path, "s.sh", SWIFT.format(kind="grpo", more=""))[0]


def test_megatron_of_ms_swift(tmp_path: Path) -> None:
    text = (
        "megatron rlhf --rlhf_type dpo --model m/q --dataset o/d --global_batch_size 32 --micro_batch_size 4 --lr 1e-5 "
        "--min_lr 1e-6 --lr_warmup_fraction 0.05 --tensor_model_parallel_size 4 --max_length 1024 --beta 0.2\n"
    )
    config = imported(tmp_path, "m.sh", text)[1]
    assert (config.train.global_batch_pairs, config.train.schedule) == (32, "cosine_to_tenth")
    assert config.train.warmup_fraction == 0.05
    assert config.objective.parameters["beta"] == 0.2


def test_openrlhf(tmp_path: Path) -> None:
    text = """
        read -r -d '' training_commands <<EOF
        openrlhf.cli.train_dpo \\
           --model.model_name_or_path m/q --data.dataset o/d --data.max_len 512 --train.batch_size 64 \\
           --model.beta 0.2 --model.label_smoothing 0.1 --model.nll_loss_coef 0.05 --adam.lr 5e-7 --ds.zero_stage 3 \\
           --data.apply_chat_template --data.chosen_key good --ckpt.save_steps -1
        EOF
        deepspeed --module $training_commands
    """
    config = imported(tmp_path, "o.sh", text)[1]
    first, second = config.objective.terms
    assert (first.parameters, second.name, second.weight) == ({"beta": 0.2, "label_smoothing": 0.1}, "nll", 0.05)
    assert (config.train.schedule, config.train.warmup_fraction) == ("cosine_to_tenth", 0.03)
    assert (config.train.adam_beta2, config.train.zero_stage, config.train.global_batch_pairs) == (0.95, 3, 64)
    assert config.data.columns == {"chosen": "good"}


def test_openrlhf_before_the_dots(tmp_path: Path) -> None:
    text = (
        "deepspeed --module openrlhf.cli.train_dpo --pretrain m/q --dataset o/d --ipo --beta 0.3 --learning_rate 1e-6\n"
    )
    config = imported(tmp_path, "o.sh", text)[1]
    assert (config.objective.name, config.objective.parameters["beta"]) == ("ipo", 0.3)
    assert config.train.learning_rate == 1e-6


NEMO: dict[str, Any] = {
    "dpo": {"max_num_steps": 100, "reference_policy_kl_penalty": 0.2, "preference_average_log_probs": False, "seed": 7},
    "policy": {
        "model_name": "m/q",
        "tokenizer": {"name": "${policy.model_name}"},
        "train_global_batch_size": 32,
        "train_micro_batch_size": 1,
        "max_total_sequence_length": 512,
        "precision": "bfloat16",
        "max_grad_norm": 1.0,
        "dtensor_cfg": {"enabled": True, "tensor_parallel_size": 2},
        "optimizer": {
            "name": "torch.optim.AdamW",
            "kwargs": {"lr": 1e-6, "weight_decay": 0.1, "betas": [0.9, 0.98], "eps": 1e-8},
        },
        "scheduler": [
            {
                "name": "torch.optim.lr_scheduler.LinearLR",
                "kwargs": {"start_factor": 1e-6, "end_factor": 1.0, "total_iters": 10},
            },
            {"name": "torch.optim.lr_scheduler.ConstantLR", "kwargs": {"factor": 1.0, "total_iters": 10000}},
            {"milestones": [10]},
        ],
    },
    "data": {"shuffle": True, "train": {"dataset_name": "HelpSteer3", "split": "train"}},
    "cluster": {"gpus_per_node": 8},
}


def test_nemo_rl_begins_from_another_file(tmp_path: Path) -> None:
    written(tmp_path, "base.yaml", json.dumps(NEMO))
    text = "defaults: base.yaml\npolicy: {train_global_batch_size: 64}\ndpo: {reference_policy_kl_penalty: 0.3}\n"
    found, config = imported(tmp_path, "dpo.yaml", text)
    assert config.objective.parameters["beta"] == 0.3
    assert (config.train.global_batch_pairs, config.train.max_steps, config.run.seed) == (64, 100, 7)
    assert (config.train.schedule, config.train.warmup_fraction, config.train.adam_beta2) == ("constant", 0.1, 0.98)
    assert config.data.train == ("hub:nvidia/HelpSteer3/preference:train",)
    assert fate(found, "policy.dtensor_cfg.tensor_parallel_size") == IDLE
    assert fate(found, "policy.tokenizer.name") == SAME


def test_nemo_rl_refuses(tmp_path: Path) -> None:
    written(tmp_path, "base.yaml", json.dumps(NEMO))
    text = (
        "defaults: base.yaml\ndpo: {sft_loss_weight: 0.1}\ndata: {shuffle: false}\n"
        "policy: {optimizer: {kwargs: {eps: 1e-5}}, "
        "scheduler: [{name: a.LinearLR, kwargs: {start_factor: 0.1}}, {name: a.ConstantLR}]}\n"
    )
    told = " ".join(problems(tmp_path, "dpo.yaml", text))
    for option in ("dpo.sft_loss_weight", "data.shuffle", "policy.optimizer.kwargs.eps", "policy.scheduler"):
        assert f"--allow {option}`" in told
    written(tmp_path, "loop.yaml", "defaults: loop.yaml\ndpo: {seed: 1}\n")
    assert "circle" in problems(tmp_path, "loop.yaml", "defaults: loop.yaml\ndpo: {seed: 1}\n")[0]


OPEN_INSTRUCT = """
    python mason.py --num_nodes 4 --gpus 8 -- accelerate launch \\
        --mixed_precision bf16 --num_processes 8 \\
        open_instruct/dpo_tune_cache.py \\
        --model_name_or_path m/q --tokenizer_name m/q --mixer_list o/all 1.0 o/half 0.5 o/some 125 \\
        --max_seq_length 2048 --per_device_train_batch_size 1 --gradient_accumulation_steps 4 \\
        --learning_rate 5e-07 --lr_scheduler_type linear --warmup_ratio 0.1 --weight_decay 0.0 --num_epochs 1 \\
        --loss_type {loss} --beta 5 --gradient_checkpointing --with_tracking --seed 8 {more}
"""


def test_open_instruct(tmp_path: Path) -> None:
    _, config = imported(tmp_path, "d.sh", OPEN_INSTRUCT.format(loss="dpo_norm", more=""))
    assert (config.objective.name, config.objective.parameters["beta"]) == ("dpo_norm", 5)
    assert config.train.global_batch_pairs == 1 * 4 * 8 * 4
    assert config.data.train == (
        "hub:o/all:train",
        {"path": "hub:o/half:train", "passes": 0.5},
        {"path": "hub:o/some:train", "count": 125},
    )
    assert (config.train.schedule, config.train.warmup_fraction, config.run.seed) == ("linear", 0.1, 8)
    assert config.train.gradient_checkpointing


def test_open_instruct_other_losses_and_another_tokenizer(tmp_path: Path) -> None:
    wpo = imported(tmp_path, "d.sh", OPEN_INSTRUCT.format(loss="wpo", more=""))[1].objective
    assert wpo.terms[0].modifiers["wpo"]
    told = problems(
        tmp_path, "d.sh", OPEN_INSTRUCT.format(loss="dpo", more="--tokenizer_name x/y --chat_template_name odd")
    )
    assert [
        option for option in ("tokenizer_name", "chat_template_name") if any(f": {option}: " in text for text in told)
    ]
    assert len(told) == 2


@pytest.mark.parametrize("name", ["a.yaml", "a.sh", "a.ini", "a.py", "a.json"])
def test_files_that_say_nothing_are_told_so(name: str, tmp_path: Path) -> None:
    texts = {"a.yaml": "x: [", "a.sh": "echo hi\n", "a.ini": "", "a.py": "x = 1\n", "a.json": "[1, 2]"}
    assert len(problems(tmp_path, name, texts[name])) == 1
