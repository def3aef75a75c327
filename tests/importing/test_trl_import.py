"""TRL: scripts with arguments, YAML, losses, schedules, adapters; its defaults are those of the installed TRL."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from raydpo.importing import from_trl, training_arguments
from raydpo.importing.draft import IDLE, MAPPED
from tests.importing.imports import fate, imported, problems

SCRIPT = """
    LR=3e-6
    NUM=4
    accelerate launch --mixed_precision bf16 --num_processes $NUM trl/scripts/dpo.py \\
        --model_name_or_path Qwen/Qwen2.5-1.5B-Instruct \\
        --dataset_name owner/pairs --dataset_config best \\
        --learning_rate $LR --beta 0.25 \\
        --per_device_train_batch_size 2 --gradient_accumulation_steps $((64 / $NUM / 2)) \\
        --max_steps 200 --warmup_steps 20 --lr_scheduler_type cosine \\
        --eval_strategy steps --eval_steps 50 --report_to none  # a comment
"""


def test_a_script_with_arguments(tmp_path: Path) -> None:
    found, config = imported(tmp_path, "dpo.sh", SCRIPT)
    assert config.objective.name == "dpo"
    assert config.objective.parameters["beta"] == 0.25
    assert config.train.learning_rate == 3e-6
    assert config.train.global_batch_pairs == 2 * 8 * 4
    assert (config.train.max_steps, config.train.warmup_fraction) == (200, 0.1)
    assert config.train.schedule == "cosine"
    assert config.train.eval_every == 50
    assert config.data.train == ("hub:owner/pairs/best:train",)
    assert config.data.eval == ("hub:owner/pairs/best:test",)
    assert (config.data.max_length, config.run.seed, config.model.dtype) == (1024, 42, "bfloat16")
    assert fate(found, "beta") == MAPPED
    assert fate(found, "report_to") == IDLE
    assert "beta: 0.25  " in found.text
    assert "(default of TRL)" in found.text


def test_processes_multiply_the_batch_and_are_assumed_to_be_one_aloud(tmp_path: Path) -> None:
    plain = SCRIPT.replace("accelerate launch --mixed_precision bf16 --num_processes $NUM", "python")
    found, config = imported(tmp_path, "one.sh", plain)
    assert config.train.global_batch_pairs == 16
    assert any("1 is assumed" in text for text in found.differences)
    assert imported(tmp_path, "three.sh", plain, processes=3)[1].train.global_batch_pairs == 48


YAML = "model_name_or_path: m/q-1\ndataset_name: o/d\nper_device_train_batch_size: 4\n"


@pytest.mark.parametrize(
    ("more", "name", "options"),
    [
        ("loss_type: ipo\nbeta: 0.2", "ipo_mean", {"beta": 0.2}),
        ("loss_type: exo_pair\nlabel_smoothing: 0.01", "exo", {"beta": 0.1, "label_smoothing": 0.01}),
        ("loss_type: robust\nlabel_smoothing: 0.2", "robust", {"label_smoothing": 0.2}),
        ("loss_type: sigmoid\nlabel_smoothing: 0.2", "dpo", {"label_smoothing": 0.0}),
        ("f_divergence_type: js_divergence", "fdpo_js", {"beta": 0.1}),
        ("loss_type: discopop\ndiscopop_tau: 0.1", "discopop", {"tau": 0.1}),
    ],
    ids=["ipo", "exo", "robust", "smoothing_unread", "f_divergence", "discopop"],
)
def test_losses(more: str, name: str, options: dict[str, float], tmp_path: Path) -> None:
    _, config = imported(tmp_path, "dpo.yaml", YAML + more)
    assert config.objective.name == name
    assert {key: config.objective.parameters[key] for key in options} == options


def test_a_sum_of_losses_keeps_its_weights(tmp_path: Path) -> None:
    _, config = imported(
        tmp_path, "dpo.yaml", YAML + "loss_type: [sft, sigmoid, bco_pair]\nloss_weights: [1.0, 0.8, 0.2]"
    )
    assert [(term.name, term.weight) for term in config.objective.terms] == [
        ("dpo", 0.8),
        ("bco_pair", 0.2),
        ("sft", 1.0),
    ]


def test_modifiers_and_a_moving_reference(tmp_path: Path) -> None:
    more = "ld_alpha: 0.5\nsync_ref_model: true\nref_model_sync_steps: 64\nref_model_mixup_alpha: 0.3"
    _, config = imported(tmp_path, "dpo.yaml", YAML + more)
    assert config.objective.terms[0].modifiers["ld_alpha"] == 0.5
    assert (config.reference.sync_every, config.reference.sync_alpha) == (64, 0.3)


@pytest.mark.parametrize(
    ("script", "more", "name", "options"),
    [
        ("kto", "--beta 0.2 --desirable_weight 1.5", "kto", {"desirable_weight": 1.5, "undesirable_weight": 1.0}),
        ("orpo", "--beta 0.4", "orpo", {"odds_weight": 0.4}),
        ("cpo", "--loss_type simpo --beta 2.0 --simpo_gamma 1.0 --cpo_alpha 0.0", "simpo", {"gamma_beta_ratio": 0.5}),
        ("cpo", "--beta 0.3", "cpo", {"beta": 0.3, "nll_weight": 0.0}),
    ],
    ids=["kto", "orpo", "simpo", "cpo"],
)
def test_the_script_names_the_trainer(
    script: str, more: str, name: str, options: dict[str, float], tmp_path: Path
) -> None:
    text = f"python examples/scripts/{script}.py --model_name_or_path m/q --dataset_name o/d {more}\n"
    _, config = imported(tmp_path, "run.sh", text)
    assert config.objective.name == name
    assert {key: config.objective.parameters[key] for key in options} == options
    if name == "cpo":
        assert [(term.name, term.weight) for term in config.objective.terms[1:]] == [("sft", 1.0)]


def test_an_adapter(tmp_path: Path) -> None:
    more = "use_peft: true\nlora_r: 8\nlora_alpha: 4\nlora_target_modules: [q_proj]\nlora_dropout: 0.0\nload_in_4bit: true\n"
    lora = imported(tmp_path, "dpo.yaml", YAML + more)[1].train.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.target_modules, lora.quantize_base) == (8, 4, ("q_proj",), "nf4")


def test_dropout_by_default_is_refused_and_allowed_by_name(tmp_path: Path) -> None:
    more = "use_peft: true\nlora_target_modules: [q_proj]\n"
    (problem,) = problems(tmp_path, "dpo.yaml", YAML + more)
    assert problem.startswith("default of TRL: lora_dropout: 0.05: ")
    found, config = imported(tmp_path, "dpo.yaml", YAML + more, allowed=["lora_dropout"])
    assert config.train.lora is not None
    assert "# Left out, as allowed: lora_dropout: 0.05" in found.text


def test_all_problems_come_at_once_with_their_lines(tmp_path: Path) -> None:
    more = "optim: rmsprop\nadam_epsilon: 1e-6\nfrobnicate: 3\nwarmup_steps: 100\nfp16: true\n"
    told = problems(tmp_path, "dpo.yaml", YAML + more)
    for line, name in enumerate(("optim", "adam_epsilon", "frobnicate", "warmup_steps", "fp16"), start=4):
        assert any(text.startswith(f"{tmp_path}/dpo.yaml:{line}: {name}: ") for text in told), name
    assert len(told) == 5


def test_what_is_off_or_null_stops_nothing(tmp_path: Path) -> None:
    imported(tmp_path, "dpo.yaml", YAML + "neftune_noise_alpha: null\ngroup_by_length: false\nfrobnicate: null\n")


def test_a_value_of_ours_settles_what_it_decides(tmp_path: Path) -> None:
    more = "warmup_steps: 100\nmax_prompt_length: 64\n"
    assert len(problems(tmp_path, "dpo.yaml", YAML + more)) == 2
    _, config = imported(tmp_path, "dpo.yaml", YAML + more, "train.warmup_fraction=0.2", "data.overlong=error")
    assert (config.train.warmup_fraction, config.data.overlong) == (0.2, "error")


def test_an_unused_permission_is_a_problem(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "dpo.yaml", YAML, allowed=["nonsense"])
    assert "the file has no such option" in problem


def test_several_commands_in_a_docstring_want_a_choice(tmp_path: Path) -> None:
    command = "python trl/scripts/dpo.py \\\n    --model_name_or_path m/q \\\n    --dataset_name o/d --beta {}\n\n"
    text = f'"""\n# One:\n{command.format(0.1)}# Two:\n{command.format(0.7)}"""\nraise SystemExit("is not run")\n'
    (problem,) = problems(tmp_path, "dpo.py", text)
    assert "2 trainings are in it" in problem
    assert imported(tmp_path, "dpo.py", text, command=2)[1].objective.parameters["beta"] == 0.7


def test_an_open_variable_is_named_and_can_be_given(tmp_path: Path) -> None:
    text = 'python trl/scripts/dpo.py --model_name_or_path "$MODEL" --dataset_name o/d --run_name $(date +%s)\n'
    told = problems(tmp_path, "dpo.sh", text)
    assert "--var NAME=VALUE" in told[0]
    assert "model_name_or_path" in told[0]
    assert imported(tmp_path, "dpo.sh", text, variables={"MODEL": "m/q"})[1].model.path == "m/q"


def test_a_loop_over_several_values_is_open(tmp_path: Path) -> None:
    text = "for LR in 1e-6 2e-6; do\ntrl dpo --model_name_or_path m --dataset_name o/d --learning_rate $LR\ndone\n"
    assert "learning_rate" in problems(tmp_path, "dpo.sh", text)[0]
    assert imported(tmp_path, "dpo.sh", text.replace(" 2e-6", ""))[1].train.learning_rate == 1e-6


def test_a_deepspeed_file_says_stage_and_offload(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}')
    train = imported(tmp_path, "dpo.yaml", YAML + "deepspeed: ds.json\n")[1].train
    assert (train.zero_stage, train.offload_parameters, train.offload_optimizer) == (3, True, False)


def test_a_cosine_with_a_floor_of_a_tenth(tmp_path: Path) -> None:
    more = "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {{min_lr_rate: {}}}\n"
    assert imported(tmp_path, "dpo.yaml", YAML + more.format(0.1))[1].train.schedule == "cosine_to_tenth"
    assert "lr_scheduler_type" in problems(tmp_path, "dpo.yaml", YAML + more.format(0.2))[0]


def test_defaults_are_those_of_the_installed_trl() -> None:
    trl = pytest.importorskip("trl", reason="TRL is for comparison alone")
    own = {field.name: field.default for field in fields(trl.DPOConfig)}
    ours = {name: value for name, value in from_trl.DEFAULTS.items() if name in own and name != "output_dir"}
    assert {name: own[name] for name in ours} == {**ours, "max_steps": -1}
    model = {field.name: field.default for field in fields(trl.ModelConfig)}
    assert {name: model[name] for name in from_trl.LORA_DEFAULTS} == from_trl.LORA_DEFAULTS
    assert len(ours) > 12


def test_every_number_of_transformers_has_a_row() -> None:
    transformers = pytest.importorskip("transformers")
    known = set(from_trl.TABLE) | set(training_arguments.DEFAULTS)
    assert known >= {
        "learning_rate",
        "warmup_steps",
        "lr_scheduler_kwargs",
        "neftune_noise_alpha",
        "label_smoothing_factor",
    }
    assert transformers.TrainingArguments is not None
