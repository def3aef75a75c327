"""`raydpo.dpo`: objects of Python train what files train, bit for bit; the same call goes on; a callback ends a run."""

from __future__ import annotations

import inspect
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

import raydpo
from raydpo.config.objective_table import OBJECTIVES
from raydpo.errors import ConfigError, DataError
from raydpo.front.by_objective import objective_function
from raydpo.pipelines import train
from raydpo.schema.events import Advanced, Evaluated, Event
from tests.pipelines.toy import NUM_EVAL, NUM_ROWS, NUM_TRAIN, Toy, config, make_pair, nats_by_row, read_pairs, weights

pytestmark = pytest.mark.usefixtures("machine")

TRAIN = {"learning_rate": 1e-3, "global_batch_pairs": 16, "save_every": 1, "eval_every": 2}


def call(toy: Toy, run_dir: Path | None, cache: str = "cache", **more: Any) -> Any:
    """The run of `tests.pipelines.toy.config`, in Python."""
    given: dict[str, Any] = {
        "model": toy.model,
        "data": toy.train,
        "eval_data": toy.eval,
        "data_options": {"max_length": 64},
        "reference": {"cache_dir": str(toy.root / cache), "rows_per_shard": 16},
        "train": TRAIN,
        "run_dir": run_dir,
        "progress": False,
        **more,
    }
    return raydpo.dpo(given.pop("model"), given.pop("data"), **given)


@pytest.fixture(scope="module")
def by_file(toy: Toy, machine: None) -> Path:
    """A run of the same config, from files."""
    folder = toy.root / "by_file"
    train(config(toy, folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["path", "list", "pandas", "datasets", "iterator"])
def test_objects_train_what_files_train(kind: str, toy: Toy, by_file: Path, tmp_path: Path) -> None:
    kinds: dict[str, Callable[[Path], Any]] = {
        "path": lambda path: path,
        "list": read_pairs,
        "pandas": lambda path: pandas.DataFrame(read_pairs(path)),
        "datasets": lambda path: datasets.Dataset.from_list(read_pairs(path)),
        "iterator": lambda path: iter(read_pairs(path)),
    }
    run = call(toy, tmp_path / "run", data=kinds[kind](toy.train), eval_data=kinds[kind](toy.eval))
    assert weights(run.model_dir) == weights(by_file / "model")
    assert run.summary["reference"]["rows"] == NUM_ROWS
    assert run.summary["reference"]["forwards"] == 0, "the cache of the run from files has every row"
    assert nats_by_row(tmp_path / "run") == nats_by_row(by_file)


@pytest.mark.slow
def test_a_loaded_model_is_its_folder(toy: Toy, by_file: Path, tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        model = AutoModelForCausalLM.from_pretrained(toy.model, dtype="float32")
        runs.append(call(toy, tmp_path / name, model=model))
    assert runs[0].config.model.path == runs[1].config.model.path, "the same model is one folder"
    for run in runs:
        assert weights(run.model_dir) == weights(by_file / "model")
    assert runs[0].summary["reference"]["forwards"] > 0, (
        "its config is written anew, and is another identity than the files'"
    )
    assert runs[1].summary["reference"]["forwards"] == 0
    with torch.no_grad():
        next(iter(model.parameters())).add_(1)
    assert call(toy, tmp_path / "three", model=model, train={**TRAIN, "max_steps": 1}).config.model.path not in {
        run.config.model.path for run in runs
    }


@pytest.mark.slow
def test_the_same_call_goes_on_and_scores_nothing_again(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = datasets.Dataset.from_list([make_pair(random.Random(1), number) for number in range(200)])

    def after_two(event: Event) -> str | None:
        return "stop" if isinstance(event, Advanced) and event.stage == "train" and event.done == 2 else None

    steps = {"data": pairs, "train": {**TRAIN, "max_steps": 6}, "cache": "of_two_hundred"}
    stopped = call(toy, None, callbacks=after_two, **steps)
    assert stopped.stopped_by == "after_two"
    assert stopped.summary is None
    assert stopped.dir.parent == tmp_path / "runs"
    assert stopped.dir.name.startswith("dpo-")
    assert "stopped by after_two" in repr(stopped)
    assert stopped.model_dir is not None
    assert stopped.model_dir.parent.parent.name == "checkpoints"

    again = call(toy, None, **steps)
    assert again.dir == stopped.dir
    assert again.summary["train"]["resumed_from_step"] >= 2
    assert again.summary["train"]["steps"] == 6
    assert again.summary["reference"]["forwards"] == 0
    assert again.summary["data"]["train_pairs"] == 200
    undisturbed = call(toy, tmp_path / "undisturbed", **steps)
    assert weights(again.model_dir) == weights(undisturbed.model_dir)

    done = call(toy, None, **steps)
    assert done.summary["train"]["resumed_from_step"] == 6
    assert call(toy, None, beta=0.2, **steps).dir != done.dir


@pytest.mark.slow
def test_every_evaluation_is_an_event_and_may_end_the_run(toy: Toy, tmp_path: Path) -> None:
    seen: list[Evaluated] = []

    def watch(event: Event) -> None:
        if isinstance(event, Evaluated):
            seen.append(event)
            if event.step == 2:
                raise raydpo.StopRun("far enough")

    run = call(toy, tmp_path / "run", callbacks=[watch])
    assert run.stopped_by == "watch: far enough"
    assert [event.step for event in seen][:2] == [0, 2]
    assert seen[1].metrics["eval/rewards/margins"] != 0
    run.resume(progress=False)
    assert run.stopped_by == ""
    assert run.summary["eval"]["last"].keys() == seen[1].metrics.keys()


@pytest.mark.slow
def test_a_callback_in_a_thread_ends_a_run_at_what_was_committed(toy: Toy, tmp_path: Path) -> None:
    """No signal handler is there: what was committed before is kept, and the run goes on from it."""
    found: list[Any] = []

    def stop(event: Event) -> str | None:
        return "stop" if isinstance(event, Advanced) and event.stage == "train" and event.done == 3 else None

    thread = threading.Thread(target=lambda: found.append(call(toy, tmp_path / "run", callbacks=stop)))
    thread.start()
    thread.join()
    assert found[0].stopped_by == "stop"
    assert found[0].resume(progress=False).summary["train"]["steps"] == 4


@pytest.mark.slow
def test_a_run_has_tables_samples_a_report_and_a_verdict(toy: Toy, by_file: Path, tmp_path: Path) -> None:
    run = raydpo.AlignmentRun.open(by_file)
    frame = run.metrics
    assert list(frame["step"]) == [0, 1, 2, 3, 4]
    assert frame["loss"].notna().tolist() == [False, True, True, True, True]
    assert frame["eval/loss"].notna().tolist() == [True, False, True, False, True]
    assert frame["eval/rewards/margins"].iloc[-1] == run.summary["eval"]["last"]["eval/rewards/margins"]
    samples = run.samples(3, 4)
    assert list(samples.columns) == ["prompt", "before", "after"]
    assert [text.partition(":")[0] for text in samples["prompt"]] == [
        "<s>" + str(NUM_TRAIN + number) for number in range(3)
    ]
    margins = run.margins
    assert list(margins["example"]) == list(range(NUM_EVAL))
    assert margins["margin"].mean() * 0.1 == pytest.approx(
        run.summary["eval"]["last"]["eval/rewards/margins"], rel=1e-4
    )
    assert (margins["log_ratio_chosen"] - margins["log_ratio_rejected"]).tolist() == margins["margin"].tolist()
    assert run.report(tmp_path / "one.html").read_text().startswith("<!")
    assert f"of {NUM_EVAL} held-out pairs" in repr(run)
    assert "rewards/margins" in run._repr_html_()
    assert "<script" not in run._repr_html_()


@pytest.mark.slow
def test_a_peft_config_is_the_section(toy: Toy, tmp_path: Path) -> None:
    given = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    run = call(toy, tmp_path / "object", lora=given)
    same = call(toy, tmp_path / "keys", lora={"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]})
    assert run.config.train.lora == same.config.train.lora
    assert run.config.train.lora.rank == 4
    adapter = "adapter_model.safetensors"
    assert (run.model_dir / adapter).read_bytes() == (same.model_dir / adapter).read_bytes()


def test_an_option_of_peft_without_counterpart_is_refused(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        call(toy, tmp_path / "run", lora=LoraConfig(bias="all", rank_pattern={"q_proj": 2}))
    said = str(caught.value)
    assert "bias='all' has no counterpart" in said
    assert "rank_pattern" in said
    assert "target_modules is not given" in said
    with pytest.raises(ConfigError, match=r"train=\{'lora.dropout': ...\}|dropout"):
        call(toy, tmp_path / "run", lora=LoraConfig(lora_dropout=0.1, target_modules="all-linear"))
    assert not (tmp_path / "run").exists()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"train": {"learning_rat": 1}}, r"^train=\{'learning_rat': ...\}: .*learning_rate"),
    ({"learning_rate": 1e-3}, r"^learning_rate: is no argument.*train=\{'learning_rate'"),
    ({"beta": -1}, r"^beta: "),
    ({"run": {"dir": "a"}}, "given as run_dir="),
    ({"model": 5}, r"^model: a int was given; allowed: a path"),
    ({"tokenizer": "a"}, r"^tokenizer: given beside a model that is a path"),
    ({"callbacks": 5}, "callbacks: 5 cannot be called"),
    ({"callbacks": [5]}, "callbacks: 5 cannot be called"),
    ({"lora": 5}, "lora: a int was given"),
    ({"data_options": {"train": "a"}}, "is given as data"),
    ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
]


@pytest.mark.parametrize(
    ("more", "said"), WRONG, ids=[f"{number} {next(iter(more))}" for number, (more, _) in enumerate(WRONG)]
)
def test_what_is_wrong_is_said_in_words_of_python(more: dict[str, Any], said: str, toy: Toy, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        call(toy, tmp_path / "run", **more)
    assert not (tmp_path / "inputs").exists()


def test_a_config_with_problems_consumes_no_data(toy: Toy, tmp_path: Path) -> None:
    rows = iter(read_pairs(toy.train))
    with pytest.raises(ConfigError, match="epochs"):
        call(toy, tmp_path / "run", data=rows, train={"epochs": -1})
    assert len(list(rows)) == NUM_TRAIN


def test_every_objective_is_a_function_with_its_own_options() -> None:
    for name, row in OBJECTIVES.items():
        function = getattr(raydpo, name)
        parameters = inspect.signature(function).parameters
        assert list(parameters)[:2] == ["model", "data"]
        assert set(row.parameters) <= set(parameters)
        assert all(parameters[key].default == option.default for key, option in row.parameters.items())
        assert function.__doc__
    assert objective_function("kto") is raydpo.kto
    assert inspect.signature(raydpo.simpo).parameters["beta"].default == OBJECTIVES["simpo"].parameters["beta"].default
    with pytest.raises(AttributeError):
        raydpo.no_objective  # noqa: B018


@pytest.mark.slow
def test_another_objective_by_its_function(toy: Toy, tmp_path: Path) -> None:
    run = raydpo.ipo(
        str(toy.model), read_pairs(toy.train), beta=0.3, run_dir=tmp_path / "run", progress=False,
        data_options={"max_length": 64}, reference={"cache_dir": str(toy.cache)}, train={**TRAIN, "max_steps": 1},
    )  # fmt: skip
    assert run.config.objective.name == "ipo"
    assert run.config.objective.parameters["beta"] == 0.3
    assert "No held-out pairs" in run.verdict


def test_a_tokenizer_of_a_model_that_names_none(toy: Toy, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(toy.model).config)
    model.config._name_or_path = model.name_or_path = ""
    with pytest.raises(ConfigError, match=r"tokenizer: the model does not say where .* Give tokenizer="):
        call(toy, tmp_path / "run", model=model)
    from raydpo.front.loaded_model import model_place

    tokenizer = AutoTokenizer.from_pretrained(toy.model)
    assert Path(model_place(model, tokenizer, tmp_path)) == Path(model_place(model, toy.model, tmp_path))
