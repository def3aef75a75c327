"""What scores depend on: contents, not paths; and none of the keys that change no score."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from raydpo.config.round_sections import JudgeSection
from raydpo.judge.judge_inputs import find_models, inputs_of, may_use_gpu
from tests.judge.test_build import section
from tests.judge.test_reward_model import save


def inputs(kind: str, **values: Any) -> dict[str, Any]:
    wanted = section(kind, **values)
    return inputs_of(wanted, find_models(wanted))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_answers_count_by_what_is_in_them(tmp_path: Path) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text('{"prompt": "p", "answer": "a"}\n')
    shutil.copy(first, second)
    before = inputs("exact", answers=str(first))
    assert before == inputs("exact", answers=str(second))
    first.write_text('{"prompt": "p", "answer": "b"}\n')
    assert before != inputs("exact", answers=str(first))


def test_models_count_by_weights_and_tokenizer(tmp_path: Path) -> None:
    model = save(tmp_path / "model")
    for values in ({"kind": "reward_model"}, {"kind": "pairwise"}):
        shutil.copytree(model, tmp_path / "copy", dirs_exist_ok=True)
        before = inputs(**values, model=str(model))
        assert before == inputs(**values, model=str(tmp_path / "copy"))
        flip_last_byte(tmp_path / "copy/model.safetensors")
        other_weights = inputs(**values, model=str(tmp_path / "copy"))
        shutil.copytree(model, tmp_path / "copy", dirs_exist_ok=True)
        (tmp_path / "copy/chat_template.jinja").write_text("{{ messages }}")
        other_template = inputs(**values, model=str(tmp_path / "copy"))
        assert before not in (other_weights, other_template)
        assert other_weights != other_template
        (tmp_path / "copy/chat_template.jinja").unlink()


def test_members_count_like_judges(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"prompt": "p", "answer": "a"}\n')
    model = save(tmp_path / "model")
    members = [{"kind": "exact", "answers": str(answers), "weight": 2.0}, {"kind": "reward_model", "model": str(model)}]
    nested = [{"kind": "ensemble", "members": members}]
    before = inputs("ensemble", members=nested)
    slower = [members[0], {**members[1], "tokens_per_batch": 5}]
    assert before == inputs("ensemble", members=[{"kind": "ensemble", "members": slower}])
    heavier = [{**members[0], "weight": 3.0}, members[1]]
    assert before != inputs("ensemble", members=[{"kind": "ensemble", "members": heavier}])
    flip_last_byte(model / "model.safetensors")
    assert before != inputs("ensemble", members=nested)


def test_keys_that_change_no_score() -> None:
    here = {"model": "m", "endpoint": "http://host/v1"}
    free = {"timeout_s": 3, "api_key_variable": "KEY", "num_workers": 2, "max_retries": 0, "max_failed_fraction": 0.5}
    free |= {"hang_timeout_s": 60}
    assert inputs("pairwise", **here) == inputs("pairwise", **here, **free)
    for other in ({"model": "n"}, {"endpoint": "http://other/v1"}, {"instruction": "Short is good."}):
        assert inputs("pairwise", **here) != inputs("pairwise", **{**here, **other})


def test_who_may_use_a_gpu() -> None:
    def may(**values: Any) -> bool:
        return may_use_gpu(JudgeSection.model_validate(values))

    served = {"kind": "pairwise", "model": "m", "endpoint": "http://h/v1"}
    model = {"kind": "reward_model", "model": "m"}
    assert may(kind="function", function="a:b")
    assert may(**model)
    assert may(kind="ensemble", members=[{"kind": "json"}, model])
    assert not may(kind="json")
    assert not may(**served)
    assert not may(kind="ensemble", members=[{"kind": "json"}, served])
