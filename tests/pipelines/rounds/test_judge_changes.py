"""A judge before and between two calls: what is refused at once, what may change, what is compared by its content."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raydpo import cli
from raydpo.config import Config
from raydpo.config.round_sections import JudgeSection
from raydpo.errors import ConfigError, JudgeError, ResumeError
from raydpo.judge.reward_model import RewardModel
from raydpo.pipelines import check, iterate
from raydpo.rounds.setup import Setup, set_up
from raydpo.schema.events import ignore
from raydpo.schema.samples import Conversation
from tests.judge.test_reward_model import CHAT, save
from tests.pipelines.rounds.toy_rounds import NUM_PROMPTS, no_digits, rounds_config
from tests.pipelines.toy import Notes, Toy

pytestmark = pytest.mark.slow

ONE_ROUND: dict[str, Any] = {"rounds.num_rounds": 1, "rounds.eval_prompts": [], "rounds.prompts_per_round": 8}
FAILING = "tests.pipelines.rounds.test_judge_changes:fails_on_odd_prompts"


def fails_on_odd_prompts(prompt: str, responses: list[str]) -> list[float]:
    """A judge that has no score for every second prompt of the toy."""
    if int(prompt.split(":")[0]) % 2:
        raise ValueError("an odd prompt")
    return no_digits(prompt, responses)


def without_judge(toy: Toy, folder: Path, changes: Mapping[str, Any] | None = None) -> Config:
    return rounds_config(toy, folder, changes).model_copy(update={"judge": None})


def refused(config: Config, judge: Any = None) -> tuple[str, ...]:
    """Problems that end the run before anything is read."""
    with pytest.raises(ConfigError) as caught:
        set_up(config, judge, ignore)
    return caught.value.problems


def ready(config: Config, judge: Any = None) -> Setup:
    """Checked, as a run is before its first prompt."""
    setup = set_up(config, judge, ignore)
    setup.check()
    return setup


def test_the_bound_on_failures_may_be_raised(toy: Toy, machine: None) -> None:
    folder = toy.root / "raised"
    changes = {**ONE_ROUND, "judge.function": FAILING}
    with pytest.raises(JudgeError, match=r"judge\.max_failed_fraction allows 2\.0%"):
        list(iterate(rounds_config(toy, folder, changes)))
    sampled = (folder / "rounds/000/generations/COMMIT.json").read_bytes()
    (found,) = iterate(rounds_config(toy, folder, {**changes, "judge.max_failed_fraction": 0.9}))
    assert 0 < found.metrics["judge/failed"] < 8
    assert (folder / "rounds/000/generations/COMMIT.json").read_bytes() == sampled


def test_a_function_that_is_handed_in_has_a_bound(toy: Toy, machine: None) -> None:
    folder = toy.root / "bound"
    with pytest.raises(JudgeError, match=r"judge: \{kind: function, max_failed_fraction: \.\.\.\}"):
        list(iterate(without_judge(toy, folder, ONE_ROUND), judge=fails_on_odd_prompts))
    changes = {**ONE_ROUND, "judge.function": None, "judge.max_failed_fraction": 0.9}
    (found,) = iterate(rounds_config(toy, folder, changes), judge=fails_on_odd_prompts)
    assert 0 < found.metrics["judge/failed"] < 8


def test_a_function_that_is_handed_in_leaves_no_other_choice(toy: Toy, tmp_path: Path) -> None:
    (problem,) = refused(rounds_config(toy, tmp_path / "two"), no_digits)
    assert "a function was handed in as well" in problem
    (problem,) = refused(rounds_config(toy, tmp_path / "json", {"judge.kind": "json"}), no_digits)
    assert "a function was handed in as well" in problem
    actors = {"judge.function": None, "judge.num_workers": 2, "judge.max_retries": 0, "judge.gpus_per_worker": 0.5}
    problems = refused(rounds_config(toy, tmp_path / "actors", actors), no_digits)
    assert [problem.split(":")[0] for problem in problems] == [
        "judge.num_workers",
        "judge.gpus_per_worker",
        "judge.max_retries",
    ]
    (problem,) = refused(rounds_config(toy, tmp_path / "nobody", {"judge.function": None}))
    assert "judge.function is missing, and no function was handed in" in problem


def test_keys_that_change_no_score_may_change(toy: Toy, tmp_path: Path) -> None:
    judge = {"judge.kind": "pairwise", "judge.model": "m", "judge.endpoint": "http://nowhere.invalid/v1"}
    ready(rounds_config(toy, tmp_path / "run", judge))
    free = {
        "judge.max_failed_fraction": 0.5,
        "judge.timeout_s": 3,
        "judge.api_key_variable": "K",
        "judge.num_workers": 2,
    }
    ready(rounds_config(toy, tmp_path / "run", {**judge, **free}))
    with pytest.raises(ResumeError, match=r"judge\.model: 'm' then, 'n' now"):
        ready(rounds_config(toy, tmp_path / "run", {**judge, "judge.model": "n"}))
    with pytest.raises(ResumeError, match=r"judge\.kind: 'pairwise' then, 'handed in' now"):
        ready(without_judge(toy, tmp_path / "run"), no_digits)


def test_other_answers_under_the_same_path_are_another_judge(toy: Toy, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"prompt": "p", "answer": "a"}\n')
    config = rounds_config(toy, tmp_path / "run", {"judge.kind": "exact", "judge.answers": str(answers)})
    ready(config)
    moved = shutil.copy(answers, tmp_path / "moved.jsonl")
    ready(rounds_config(toy, tmp_path / "run", {"judge.kind": "exact", "judge.answers": str(moved)}))
    answers.write_text('{"prompt": "p", "answer": "b"}\n')
    with pytest.raises(ResumeError, match=r"judge\.answers_sha256: "):
        ready(config)


def test_another_model_under_the_same_path_is_another_judge(toy: Toy, tmp_path: Path) -> None:
    model = save(tmp_path / "model")
    members = ({"kind": "json"}, {"kind": "reward_model", "model": str(model)})
    alone = rounds_config(toy, tmp_path / "alone", {"judge.kind": "reward_model", "judge.model": str(model)})
    several = rounds_config(toy, tmp_path / "several", {"judge.kind": "ensemble", "judge.members": members})
    scores_of = [ready(config).judging.inputs for config in (alone, several)]
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    for config, before in zip((alone, several), scores_of, strict=True):
        assert set_up(config, None, ignore).judging.inputs != before, "scores of the other model would be taken"
        with pytest.raises(ResumeError, match=r"judge\.(model_digest|inputs_of_members): "):
            ready(config)


def test_mistakes_of_the_judge_are_found_before_anything_is_sampled(toy: Toy, tmp_path: Path) -> None:
    members = (
        {"kind": "regex", "pattern": "("},
        {"kind": "exact", "answers": "no/such.jsonl"},
        {"kind": "function", "function": "no.such:judge"},
        {"kind": "reward_model", "model": "./none"},
        {"kind": "reward_model", "model": str(save(tmp_path / "two", num_labels=2))},
    )
    changes = {
        "judge.kind": "ensemble",
        "judge.members": members,
        "rounds.reference": "./gone",
        "generate.engine": "vllm",
        "generate.temperature": 2.5,
    }
    problems = refused(rounds_config(toy, tmp_path / "run", changes))
    assert len(problems) == len(members) + 2
    said = "\n".join(problems)
    for words in (
        "not a regular expression",
        "cannot be read",
        "could not be imported",
        "./none does not",
        "2 outputs",
    ):
        assert words in said
    assert "rounds.reference: ./gone does not exist" in said
    assert "generate.temperature: 2.5 is not one that vLLM samples at; 0.01 to 2 are" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds.top_k": 3}, "rounds.top_k: 3 is read with rounds.pairs: top_k alone, and pairs is best_worst"),
        ({"rounds.ema_decay": 0.5}, "rounds.ema_decay: 0.5 is read with rounds.reference: ema alone"),
        ({"judge.kind": "json", "judge.gpus_per_worker": 1}, "judge.gpus_per_worker: 1 would stand idle: .* kind json"),
        (
            {
                "judge.kind": "pairwise",
                "judge.endpoint": "http://h/v1",
                "judge.model": "m",
                "judge.gpus_per_worker": 0.5,
            },
            "judge.gpus_per_worker: 0.5 would stand idle: .* next to an endpoint",
        ),
        (
            {"generate.gpus_per_worker": 2},
            "generate.gpus_per_worker: 2; a generator of engine transformers holds its whole",
        ),
        ({"generate.vllm": {"pipeline_parallel_size": 2}}, "generate.vllm is read with generate.engine: vllm alone"),
        (
            {"generate.engine": "vllm", "generate.vllm": {"quantization": "fp8"}},
            "generate.vllm.quantization: fp8; a quantised policy is not the one that is trained",
        ),
        (
            {"generate.engine": "vllm", "generate.gpus_per_worker": 4, "generate.vllm": {"tensor_parallel_size": 2}},
            "tensor_parallel_size 2 times pipeline_parallel_size 1 is 2, and .* is 4: GPUs would stand idle",
        ),
        (
            {"generate.engine": "vllm", "generate.gpus_per_worker": 1, "generate.vllm": {"tensor_parallel_size": 2}},
            "is 2, and generate.gpus_per_worker is 1: there are fewer GPUs than it needs",
        ),
        ({"rounds.prompts": []}, "rounds.prompts is empty"),
    ],
)
def test_what_would_do_nothing_is_refused(toy: Toy, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        set_up(rounds_config(toy, tmp_path / "run", changes), None, ignore)
    assert len(caught.value.problems) == 1


def test_problems_of_rounds_and_of_every_run_come_together(toy: Toy, tmp_path: Path) -> None:
    changes = {"rounds.top_k": 3, "model.path": "./gone", "reference.sync_alpha": 1.0}
    problems = refused(rounds_config(toy, tmp_path / "run", changes))
    assert [problem.split(":")[0] for problem in problems] == ["rounds.top_k", "reference.sync_alpha", "model.path"]


def test_a_reward_model_goes_over_several_gpus(toy: Toy, tmp_path: Path) -> None:
    reward = {"judge.kind": "reward_model", "judge.model": str(save(tmp_path / "model"))}
    set_up(rounds_config(toy, tmp_path / "run", {**reward, "judge.gpus_per_worker": 2}), None, ignore)


@pytest.mark.parametrize("is_member", [False, True], ids=["alone", "in an ensemble"])
def test_a_language_model_without_vllm_uses_one_gpu(toy: Toy, tmp_path: Path, is_member: bool) -> None:
    judge = {"kind": "pairwise", "model": str(toy.model)}
    given = {"kind": "ensemble", "members": [judge, {"kind": "json"}]} if is_member else judge
    changes = {f"judge.{key}": value for key, value in {**given, "gpus_per_worker": 2}.items()}
    (problem,) = refused(rounds_config(toy, tmp_path / "run", changes))
    assert problem.startswith(
        "judge.gpus_per_worker: 2: a language model that judges with generate.engine: transformers"
    )


def test_a_language_model_that_judges_goes_over_several_with_vllm(toy: Toy, tmp_path: Path) -> None:
    judge = {"judge.kind": "pairwise", "judge.model": str(toy.model), "generate.engine": "vllm"}
    gpus = {"judge.gpus_per_worker": 2, "judge.vllm": {"tensor_parallel_size": 1}}
    (problem,) = refused(rounds_config(toy, tmp_path / "run", {**judge, **gpus}))
    assert problem.startswith("judge.vllm: tensor_parallel_size 1 times pipeline_parallel_size 1 is 1")
    set_up(rounds_config(toy, tmp_path / "run", {**judge, "judge.gpus_per_worker": 2}), None, ignore)


def test_what_is_read_is_allowed(toy: Toy, tmp_path: Path) -> None:
    changes = {
        "rounds.pairs": "top_k",
        "rounds.top_k": 3,
        "rounds.reference": "ema",
        "rounds.ema_decay": 0.5,
        "judge.gpus_per_worker": 1,
        "generate.gpus_per_worker": 1,
    }
    set_up(rounds_config(toy, tmp_path / "run", changes), None, ignore)
    resolved = rounds_config(toy, tmp_path / "run").model_dump(exclude={"judge": {"members"}})
    resolved["objective"] = {"name": "dpo", "beta": 0.1}
    set_up(Config.model_validate(resolved), None, ignore)  # a file that names every default


def test_a_reward_model_reads_the_messages_of_a_prompt(toy: Toy, tmp_path: Path) -> None:
    turns = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user")]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": turns}) + "\n" + json.dumps({"prompt": "q"}) + "\n")
    (tmp_path / "chat.jinja").write_text(CHAT + "{% if add_generation_prompt %}<assistant>{% endif %}")
    changes = {
        "rounds.prompts": [str(tmp_path / "prompts.jsonl")],
        "rounds.eval_prompts": [],
        "data.chat_template": str(tmp_path / "chat.jinja"),
    }
    chat, plain = (
        prompt.text for prompt in set_up(rounds_config(toy, tmp_path / "run", changes), None, ignore).prompts
    )
    assert isinstance(chat, Conversation)
    assert (chat, plain) == ("system: s\n\nuser: u\n\nassistant: a\n\nuser: u", "q")
    judge = RewardModel(save(tmp_path / "model", template=CHAT), 8192)
    written = [judge.tokenizer.decode(judge.encode(prompt, "x")) for prompt in (chat, plain)]
    assert written == [
        "<system>s</s><user>u</s><assistant>a</s><user>u</s><assistant>x</s>",
        "<user>q</s><assistant>x</s>",
    ]


def write_yaml(toy: Toy, path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """The config of toy rounds as a file, without data and without what stands at its default."""
    config = rounds_config(toy, path.parent / "run", changes)
    values = config.model_dump(mode="json", exclude_defaults=True)
    values["objective"] = {"name": "dpo", "beta": 0.1}
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def test_a_config_of_rounds_is_checked(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_yaml(toy, tmp_path / "rounds.yaml")
    assert cli.main(["check", str(path), "--json"]) == 0
    shown = capsys.readouterr()
    summary = json.loads(shown.out.splitlines()[-1])
    assert summary["prompts"] == {"prompts": NUM_PROMPTS, "eval_prompts": 16, "in_both": 0}
    assert f"rounds.prompts: {NUM_PROMPTS} prompts of {NUM_PROMPTS} lines" in shown.err
    assert "warning" not in shown.err
    assert not (tmp_path / "run").exists()
    bad = write_yaml(toy, tmp_path / "bad.yaml", {"judge.kind": "regex", "judge.pattern": "("})
    assert cli.main(["check", str(bad), "rounds.top_k=3"]) == 2
    said = capsys.readouterr().err
    assert "raydpo check: 2 problems" in said
    assert "judge.pattern: '(' is not a regular expression" in said


@pytest.mark.parametrize("judge", [None, {"kind": "function", "max_failed_fraction": 0.5}], ids=["none", "a bound"])
def test_a_config_whose_judge_is_handed_in_later_is_checked(toy: Toy, tmp_path: Path, judge: Any) -> None:
    notes = Notes()
    config = rounds_config(toy, tmp_path / "run").model_copy(
        update={"judge": judge and JudgeSection.model_validate(judge)}
    )
    assert check(config, notes)["prompts"]["prompts"] == NUM_PROMPTS
    assert "the config names no judge: raydpo.iterate(config, judge=function) has to bring one" in notes.info


def test_held_out_prompts_that_are_trained_on_are_said(toy: Toy, tmp_path: Path) -> None:
    rounds_config(toy, tmp_path / "run")  # writes the prompts
    both, held_out = (toy.root / f"{name}.jsonl" for name in ("prompts", "held_out"))
    shared = tmp_path / "shared.jsonl"
    shared.write_text("".join(both.read_text().splitlines(keepends=True)[:3]) + held_out.read_text())
    notes = Notes()
    summary = check(rounds_config(toy, tmp_path / "run", {"rounds.eval_prompts": [str(shared)]}), notes)
    assert summary["prompts"]["in_both"] == 3
    (warning,) = notes.warning
    assert warning.startswith("3 of 19 held-out prompts (rounds.eval_prompts) stand in rounds.prompts too")


def test_rounds_and_data_are_checked_together(toy: Toy, tmp_path: Path) -> None:
    changes = {"rounds.offline_share": 0.5, "data.train": [str(toy.train)]}
    summary = check(rounds_config(toy, tmp_path / "run", changes))
    assert summary["prompts"]["prompts"] == NUM_PROMPTS
    assert summary["data"]["train_pairs"] > 0
