"""The loader: values, origins, and every mistake as a sentence with its place, all of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.config import OBJECTIVES, Config
from raydpo.config.load import load
from raydpo.config.problems import all_keys
from raydpo.errors import ConfigError

MINIMAL = """\
run:       {dir: runs/first, seed: 3}
model:     {path: some/model}
data:      {train: [pairs.jsonl.gz], eval: [held_out.jsonl.gz]}
objective: {name: dpo, beta: 0.2}
reference: {cache_dir: ~/.cache/raydpo, num_workers: 2}
train:
  num_workers: 2
  learning_rate: 5e-7
"""

WITH_ROUNDS = (
    MINIMAL
    + """\
judge:     {kind: json}
rounds:    {prompts: [prompts.jsonl], reference: initial}
"""
)


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    assert caught.value.exit_code == 2
    return [line.replace(str(path), path.name) for line in caught.value.problems]


def test_values_and_origins(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    loaded = load(path, ["train.epochs=2", "train.lora.rank=8"])
    config, origins = loaded.config, loaded.origins
    assert config.train.learning_rate == 5e-7
    assert isinstance(config.train.learning_rate, float)
    assert config.objective.parameters == {"beta": 0.2, "label_smoothing": 0.0}
    assert config.data.train == ("pairs.jsonl.gz",)
    assert config.train.lora is not None
    assert config.train.lora.rank == 8
    assert origins["run.seed"] == f"{path}:1"
    assert origins["train.learning_rate"] == f"{path}:8"
    assert origins["train.epochs"] == origins["train.lora.rank"] == "command line"
    assert origins["train.lora.alpha"] == origins["objective.label_smoothing"] == "default"
    assert Config.load(path, ["train.epochs=2", "train.lora.rank=8"]) == config


def test_every_value_has_an_origin(tmp_path: Path) -> None:
    origins = load(write(tmp_path, WITH_ROUNDS), ["train.lora={}"]).origins
    others = {f"objective.{key}" for row in OBJECTIVES.values() for key in row.parameters}
    others -= {f"objective.{key}" for key in OBJECTIVES["dpo"].parameters}
    assert set(origins) == set(all_keys(Config)) - others


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("train.learning_rate=5e-7", "train.learning_rate", 5e-7),
        ("train.learning_rate=1E-3", "train.learning_rate", 1e-3),
        ("train.max_steps=010", "train.max_steps", 10),
        ("train.max_steps=null", "train.max_steps", None),
        ("data.train=*.jsonl", "data.train", ("*.jsonl",)),
        ("data.train=[a.jsonl, b.jsonl]", "data.train", ("a.jsonl", "b.jsonl")),
        ("run.dir=runs/a=b", "run.dir", "runs/a=b"),
        ("run.dir=2024", "run.dir", "2024"),
        ("model.revision=12e10", "model.revision", "12e10"),
        ("model.revision=no", "model.revision", "no"),
        ("train.gradient_checkpointing=true", "train.gradient_checkpointing", True),
        ("profile=true", "profile", True),
        ("objective=sft", "objective.name", "sft"),
        ("objective={name: dpo, beta: 3}", "objective.beta", 3.0),
    ],
)
def test_overrides(tmp_path: Path, word: str, key: str, value: object) -> None:
    loaded = load(write(tmp_path, MINIMAL), [word])
    section, _, name = key.rpartition(".")
    assert getattr(getattr(loaded.config, section) if section else loaded.config, name) == value
    assert loaded.origins[key] == "command line"


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load(write(tmp_path, MINIMAL), ["run.seed=1", "run.seed=2"]).config.run.seed == 2


def test_an_override_reaches_into_the_short_objective(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL.replace("{name: dpo, beta: 0.2}", "dpo"))
    assert load(path, ["objective.beta=0.5"]).config.objective.parameters["beta"] == 0.5


def test_empty_sections_are_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "run: {dir: a}\nmodel: {path: b}\ntrain:\ndata:\n")
    assert load(path).config.train.num_workers == 1


MISTAKES = {
    "model.pth: x": ["model.pth", "no such key", '"x"', "model.path"],
    "train.learning_rat: 1": ["train.learning_rat", "train.learning_rate"],
    "train.beta: 0.1": ["train.beta", "objective.beta"],
    "run.learning_rate: 0.1": ["run.learning_rate", "train.learning_rate"],
    "train.lora.rnk: 4": ["train.lora.rnk", "train.lora.rank"],
    "evaluate.zzz: 1": ["evaluate.zzz", "Allowed in evaluate: model, tie_tolerance_nats"],
    "run.seed: x": ["run.seed", 'given "x"', "a whole number >= 0 and <"],
    "run.seed: 1.5": ["run.seed", "given 1.5"],
    "run.seed: true": ["run.seed", "given true", "a whole number"],
    "run.resume: atuo": ["run.resume", "auto, never or must", "Did you mean auto?"],
    "run.dir: ''": ["run.dir", "text that is not empty"],
    "train.epochs: 0": ["train.epochs", "given 0", "a number > 0"],
    "train.epochs: .inf": ["train.epochs", "given Infinity", "a number > 0"],
    "train.learning_rate: nan": ["train.learning_rate", "a number > 0"],
    "train.zero_stage: 4": ["train.zero_stage", "0, 1, 2 or 3"],
    "train.offload_optimizer: maybe": ["train.offload_optimizer", "true or false", "default, false"],
    "train.activation_memory_gb: 0": ["train.activation_memory_gb", "given 0", "a number > 0"],
    "train.max_steps: [1]": ["train.max_steps", "given [1]", "or null"],
    "train.lora: 8": ["train.lora", "given 8", "a section with the keys rank, alpha"],
    "train: 8": ["train", "given 8", "a section with the keys"],
    "data.train: 5": ["data.train", "a list of texts"],
    "judge: {kind: ensemble, members: 5}": ["judge.members", "given 5", "a list of sections"],
    "data.eval_fraction: 1": ["data.eval_fraction", ">= 0 and < 1"],
    "data.confidence_column: x": ["confidence_column and min_confidence go together", 'confidence_column: "x"'],
    "train.offload_parameters: true": ["offload_parameters needs zero_stage: 3"],
    "train: {sequence_parallel_size: 2, num_workers: 3}": [
        "sequence_parallel_size: 2 with num_workers: 3",
        "a multiple of 2",
    ],
    "train: {sequence_parallel_size: 2, num_workers: {min: 2, max: 4}}": ["num_workers: {min: 2, max: 4}", "no range"],
    "train: {sequence_parallel_size: 2, num_workers: 2, compile: true}": ["sequence_parallel_size: 2 with compile"],
    "train: {compile: true, zero_stage: 3}": ["compile needs zero_stage: 0, 1 or 2"],
    "objective.beta: -1": ["objective.beta", "-1", "(0, 10000]", "default, 0.1"],
    "objective.beta: strong": ["objective.beta", "'strong' is not a number"],
    "objective.betta: 1": ["objective.betta", "Did you mean objective.beta?", "name, beta, label_smoothing"],
    "objective: dpoo": ["objective.name", "'dpoo' is not an objective", "did you mean dpo?"],
    "objective: 5": ["objective", "given 5"],
    "profile: maybe": ["profile", 'given "maybe"', "true or false", "default, false"],
    "profile: {dir: x}": ["profile", "given", "true or false"],
    "train.profile: true": ["train.profile", "no such key", "Did you mean profile?"],
    "zebra: 1": ["zebra", "Allowed at the top: run, model"],
    "trian: {}": ["trian", "Did you mean train?"],
}


def as_yaml(mistake: str) -> str:
    """`a.b: c` as nested flow YAML on one line."""
    key, _, value = mistake.partition(": ")
    parts = key.split(".")
    return "".join(f"{part}: {{" for part in parts[:-1]) + f"{parts[-1]}: {value}" + "}" * (len(parts) - 1)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_file(tmp_path: Path, mistake: str) -> None:
    base = {"run": "run: {dir: a}", "model": "model: {path: b}"}
    section = mistake.partition(":")[0].partition(".")[0]
    lines = [line for name, line in base.items() if name != section]
    if section in base:
        needed = {"run": "dir: a, ", "model": "path: b, "}[section]
        lines.append(as_yaml(mistake).replace("{", "{" + ("" if mistake.startswith("run.dir") else needed), 1))
    else:
        lines.append(as_yaml(mistake))
    path = write(tmp_path, "\n".join(lines) + "\n")
    found = problems(path)
    assert len(found) == 1, found
    assert found[0].startswith(f"run.yaml:{len(lines)}: ")
    for words in MISTAKES[mistake]:
        assert words in found[0]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_on_the_command_line(tmp_path: Path, mistake: str) -> None:
    found = problems(write(tmp_path, MINIMAL), mistake.replace(": ", "=", 1))
    assert len(found) == 1, found
    assert found[0].startswith("command line: ")
    for words in MISTAKES[mistake]:
        assert words in found[0]


def test_all_mistakes_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "run: {seed: -1}\n"
        "model: {path: b, pth: c}\n"
        "objective: {beta: -1, label_smoothing: 0.5, gamma: 1}\n"
        "train:\n"
        "  epochs: 0\n"
        "  epochs: 1\n"
        "  offload_parameters: true\n"
        "  zero_stag: 3\n",
    )
    found = problems(path, "run.resume=maybe", "nonsense")
    places = [line.split(": ")[0] for line in found]
    expected = ["1", "1", "2", "3", "3", "3", "5", "6", "7", "8"]
    assert places == [f"run.yaml:{line}" for line in expected] + ["command line"] * 2
    assert any("run.dir is missing" in line for line in found)
    assert any("epochs: given twice, first on line 5" in line for line in found)
    assert any("offload_parameters needs zero_stage: 3" in line for line in found)


def test_a_cross_check_on_a_broken_key_is_not_made_up(tmp_path: Path) -> None:
    found = problems(write(tmp_path, MINIMAL), "train.zero_stage=9", "train.offload_parameters=true")
    assert len(found) == 1
    assert "train.zero_stage" in found[0]


def test_cross_checks_beside_a_value_at_the_top(tmp_path: Path) -> None:
    found = problems(write(tmp_path, MINIMAL), "profile=true", "train.epochs=0", "train.offload_parameters=true")
    assert [line.split(":")[1].strip() for line in found] == ["train.epochs", "train"]
    found = problems(write(tmp_path, MINIMAL), "profile=5", "train.offload_parameters=true")
    assert [line.split(":")[1].strip() for line in found] == ["train", "profile"]


def test_all_layers_or_a_budget_but_not_both(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert load(path, ["train.activation_memory_gb=1.5"]).config.train.activation_memory_gb == 1.5
    found = problems(path, "train.activation_memory_gb=1.5", "train.gradient_checkpointing=true")
    assert len(found) == 1
    assert "activation_memory_gb chooses how many: set one of the two" in found[0]


def test_missing_keys_are_named(tmp_path: Path) -> None:
    found = problems(write(tmp_path, "data: {train: [a]}\n"))
    assert [line.split(";")[0] for line in found] == ["run.yaml: run.dir is missing", "run.yaml: model.path is missing"]


def test_sft_reads_no_beta(tmp_path: Path) -> None:
    found = problems(write(tmp_path, MINIMAL), "objective.name=sft")
    assert len(found) == 1
    assert found[0].startswith("run.yaml:4: objective.beta: objective sft does not read beta")


OF_ANY_KEYS = ("settings", "chat_template_kwargs", "label_selector", "deepspeed")


@pytest.mark.parametrize("key", [key for key in all_keys(Config) if key.rpartition(".")[2] not in OF_ANY_KEYS])
def test_every_key_refuses_a_section(tmp_path: Path, key: str) -> None:
    text = WITH_ROUNDS if key.startswith(("judge.", "rounds.")) else MINIMAL
    found = problems(write(tmp_path, text), f"{key}={{no: way}}")
    assert len(found) == 1
    assert key in found[0]


@pytest.mark.parametrize(("name", "key"), [(row.name, key) for row in OBJECTIVES.values() for key in row.parameters])
def test_every_objective_parameter_refuses_nan(tmp_path: Path, name: str, key: str) -> None:
    other = MINIMAL.replace("{name: dpo, beta: 0.2}", f"{{name: {name}}}")
    found = problems(write(tmp_path, other), f"objective.{key}=.nan")
    assert len(found) == 1
    assert "out of range" in found[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("# nothing yet\n", "the file is empty"),
        ("- a\n- b\n", "allowed: sections"),
        ("just words\n", "allowed: sections"),
        ("run: {dir: a\nmodel: b\n", "not valid YAML"),
        ("run:\n\tdir: a\n", "run.yaml:2: not valid YAML"),
        ("data: {train: *.jsonl}\n", "in quotes"),
        ("run: {dir: a}\n---\nrun: {dir: b}\n", "not valid YAML"),
        ("run: {dir: a}\nmodel: {path: !!python/object:os.system x}\n", "the YAML tag"),
        ("run: {dir: a}\nmodel: {path: b}\ndata: {train: &x [*x]}\n", "an alias that contains itself"),
        ("run: {dir: a}\nrun: {dir: b}\nmodel: {path: b}\n", "run.yaml:2: run: given twice, first on line 1"),
        ("run: {dir: a}\nmodel: {path: b}\n1: {}\n", "1: no such key"),
        ("run: {dir: a}\nmodel: {path: b}\n? [x]\n: 1\n", "no such key"),
        ("run: {dir: \0}\n", "not valid YAML"),
    ],
)
def test_files_that_are_not_a_config(tmp_path: Path, text: str, words: str) -> None:
    found = problems(write(tmp_path, text))
    assert words in "\n".join(found)
    assert all(line.startswith("run.yaml") for line in found)


def test_paths_that_are_not_a_file(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL)
    assert "There is run.yaml." in problems(tmp_path / "rnu.yaml")[0]
    assert "this is a folder" in problems(tmp_path)[0]
    assert "there is no such file" in problems(tmp_path / "no" / "run.yaml")[0]
    assert "Write the file first" in problems(Path("run.seed=1"))[0]
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("run: {dir: über}".encode("latin-1"))
    assert "not UTF-8 text (byte 0xfc at offset 11)" in problems(latin)[0]


def test_a_byte_order_mark_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL, encoding="utf-8-sig")
    assert load(path).config.run.seed == 3


def test_shared_sequences_need_a_packed_stream_and_workers_for_the_reference(tmp_path: Path) -> None:
    shared = ["train.sequence_parallel_size=2", "train.num_workers=4"]
    load(write(tmp_path, MINIMAL), shared)
    found = problems(write(tmp_path, MINIMAL), *shared, "model.attention=sdpa", "reference.weights=trainers")
    assert len(found) == 2
    assert any("with model.attention: sdpa, which pads rows" in line for line in found)
    assert any("with reference.weights: trainers, where each rank scores" in line for line in found)
