"""What a round can be told: reference, pairs, judge, stop rules, LoRA, ZeRO."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file

from raydpo.artifacts import weights_digest
from raydpo.driver.generators import Generators
from raydpo.errors import ConfigError, JudgeError, ResumeError
from raydpo.models.tensor_bytes import num_bytes_of
from raydpo.pipelines import iterate
from raydpo.rounds.stop import stop_reasons
from raydpo.rundir.rounds_folder import prompts_of
from raydpo.schema.shared_weights import SharedWeights
from raydpo.train import shared_push
from tests.pipelines.rounds.toy_rounds import generations, no_digits, pairs, rounds_config, rows_of_parts
from tests.pipelines.toy import Notes, Toy

pytestmark = pytest.mark.slow


def test_an_adapter_is_sent_alone_and_samples_are_those_of_merged_matrices(
    toy: Toy, machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    honest = Generators.take

    def take(self: Generators, shared: SharedWeights, version: int) -> None:
        sent.append(sum(map(num_bytes_of, shared.tensors)))
        honest(self, shared, version)

    monkeypatch.setattr(Generators, "take", take)
    made, notes = {}, Notes()
    changes = {"train.lora": {"rank": 4}, "rounds.num_rounds": 3, "rounds.eval_prompts": []}
    for kind in ("alone", "merged"):
        found = list(iterate(rounds_config(toy, toy.root / kind, changes), observer=notes))
        assert [each.model.name for each in found] == ["model_merged"] * 3
        made[kind] = [weights_digest(each.model) for each in found], generations(toy.root / kind, 2)
        monkeypatch.setattr(shared_push, "travels_alone", lambda model: False)
    assert len({*made["alone"][0], weights_digest(toy.model)}) == 4
    assert made["alone"] == made["merged"], "the policies, and what was sampled from the second push"
    adapter = load_file(toy.root / "alone/rounds/000/train/model/adapter_model.safetensors")
    merged = load_file(found[0].model / "model.safetensors")
    changed = (weight for name, weight in merged.items() if f"base_model.model.{name[:-6]}lora_A.weight" in adapter)
    size = sum(factor.nbytes for factor in adapter.values())
    assert sent == [size] * 3 + [sum(weight.nbytes for weight in changed)] * 3
    assert sum("generator holds policy" in text for text in notes.info) == 6, "compared after each push"
    assert sum("merged matrices go to the generators" in text for text in notes.info) == 3


def test_weights_gathered_from_two_ranks_of_zero_3(toy: Toy, machine: None) -> None:
    folder, notes = toy.root / "zero3", Notes()
    changes = {"train.zero_stage": 3, "train.num_workers": 2, "rounds.num_rounds": 1, "rounds.eval_prompts": []}
    (found,) = iterate(rounds_config(toy, folder, changes), observer=notes)
    assert any("generator holds policy 1" in text for text in notes.info)
    assert weights_digest(found.model) != weights_digest(toy.model)


def test_a_moving_average_is_the_reference(toy: Toy, machine: None) -> None:
    folder = toy.root / "ema"
    changes = {"rounds.reference": "ema", "rounds.ema_decay": 0.75, "rounds.eval_prompts": []}
    first, _ = iterate(rounds_config(toy, folder, changes))
    average = load_file(folder / "rounds/001/reference/model.safetensors")
    initial, trained = (load_file(model / "model.safetensors") for model in (toy.model, first.model))
    assert average.keys() == trained.keys()
    for name, value in average.items():
        torch.testing.assert_close(value, 0.75 * initial[name] + 0.25 * trained[name])


def test_spin_takes_the_data_s_own_answer(toy: Toy, machine: None) -> None:
    folder, file = toy.root / "spin", toy.root / "spin.jsonl"
    file.write_text(toy.train.read_text())
    changes = {
        "rounds.pairs": "spin",
        "rounds.prompts": [str(file)],
        "rounds.eval_prompts": [],
        "rounds.num_rounds": 1,
        "rounds.reference": "previous_round",
        "generate.num_answers": 3,
    }
    config = rounds_config(toy, folder, changes).model_copy(update={"judge": None})
    (found,) = iterate(config)
    shown = [json.loads(line) for line in file.read_text().splitlines()]
    own = {row["prompt"]: row["chosen"] for row in shown}
    made = pairs(folder, 0)
    assert len(made) == found.metrics["pairs/made"] > 100, "every sample of 60 prompts that is another answer"
    assert len({(pair["prompt"], pair["rejected"]) for pair in made}) == len(made)
    assert all(pair["chosen"] == own[pair["prompt"]] != pair["rejected"] for pair in made)
    assert not (folder / "rounds/000/scores").exists()
    file.write_text("".join(json.dumps({**row, "chosen": row["chosen"] + " 7"}) + "\n" for row in shown))
    with pytest.raises(ResumeError, match="prompts"):  # other answers of the data are another run
        next(iterate(config))


def test_a_share_of_offline_pairs(toy: Toy, machine: None) -> None:
    folder = toy.root / "mixed"
    changes = {
        "rounds.offline_share": 0.5,
        "data.train": [str(toy.train)],
        "rounds.num_rounds": 1,
        "rounds.eval_prompts": [],
        "rounds.prompts_per_round": 8,
    }
    (found,) = iterate(rounds_config(toy, folder, changes))
    offline = (folder / "rounds/000/pairs/offline.jsonl").read_text().splitlines()
    assert len(offline) == found.metrics["pairs/made"] == len(pairs(folder, 0)) > 0
    assert set(offline) <= {json.dumps(json.loads(line)) for line in toy.train.read_text().splitlines()}
    summary = json.loads((folder / "rounds/000/train/summary.json").read_text())
    assert summary["data"]["train_pairs"] == 2 * len(offline)


def test_a_rule_ends_the_rounds(toy: Toy, machine: None) -> None:
    folder, notes = toy.root / "stopped", Notes()
    changes = {"rounds.min_mean_score": 1e6, "rounds.num_rounds": 3, "rounds.prompts_per_round": 8}
    (found,) = iterate(rounds_config(toy, folder, changes), observer=notes)
    assert found.stopped == (
        f"eval/mean_score is {found.metrics['eval/mean_score']:.4g}, below rounds.min_mean_score: 1e+06",
    )
    assert any("stopped after round 0" in text for text in notes.warning)


def test_rules_look_at_the_right_side() -> None:
    rounds = rounds_section(max_kl_nats=2.0, min_win_rate=0.5, max_length_drift=2.0, max_duplicate_share=0.5)
    good = {"eval/kl_nats": 1.9, "eval/win_rate": 0.6, "eval/length_ratio": 0.6, "samples/duplicate_share": 0.4}
    assert stop_reasons(good, rounds) == []
    bad = {"eval/kl_nats": 2.1, "eval/win_rate": 0.4, "eval/length_ratio": 0.4, "samples/duplicate_share": 0.6}
    assert [reason.split()[0] for reason in stop_reasons(bad, rounds)] == [
        "eval/win_rate",
        "eval/kl_nats",
        "samples/duplicate_share",
        "eval/length_ratio",
    ]
    assert stop_reasons({}, rounds) == []


def rounds_section(**values: float):
    from raydpo.config.round_sections import RoundsSection

    return RoundsSection.model_validate({"prompts": "p", "reference": "initial", **values})


def test_a_judge_that_fails_stops_the_round_and_is_asked_again(toy: Toy, machine: None) -> None:
    """A function of this process, which needs no judge section."""
    folder, calls = toy.root / "failing", []
    changes = {"rounds.num_rounds": 1, "rounds.eval_prompts": [], "rounds.prompts_per_round": 8}
    config = rounds_config(toy, folder, changes).model_copy(update={"judge": None})

    def judge(prompt: str, responses: list[str]) -> list[float]:
        calls.append(prompt)
        if len(calls) in (2, 3):
            raise TimeoutError("no answer")
        return no_digits(prompt, responses)

    with pytest.raises(JudgeError, match=r"failed on 2 of 8 prompts.*TimeoutError: no answer"):
        list(iterate(config, judge=judge))
    assert not (folder / "rounds/000/scores").exists()
    (found,) = iterate(config, judge=judge)
    assert found.metrics["judge/failed"] == 0
    assert found.metrics["pairs/made"] > 0
    assert len(calls) == 8 + 4, "the item of four prompts that held the failures, and no other"


def test_what_does_not_fit_together_is_said_at_once(toy: Toy, tmp_path: Path) -> None:
    changes = {"generate.num_answers": 1, "rounds.offline_share": 0.5, "train.export": "best", "train.eval_every": 1}
    config = rounds_config(toy, tmp_path / "never", changes).model_copy(update={"judge": None})
    with pytest.raises(ConfigError) as caught:
        next(iterate(config))
    said = " ".join(caught.value.problems)
    assert all(key in said for key in ("judge", "generate.num_answers", "rounds.offline_share", "train.export"))
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(("num_prompts", "per_round"), [(10, 4), (10, 10), (10, 3), (7, 5), (5, None)])
def test_every_prompt_comes_once_a_lap(num_prompts: int, per_round: int | None) -> None:
    rounds = [prompts_of(index, num_prompts, per_round, seed=3) for index in range(12)]
    assert all(len(set(chosen)) == len(chosen) == (per_round or num_prompts) for chosen in rounds)
    line = [prompt for chosen in rounds for prompt in chosen]
    if num_prompts % (per_round or num_prompts) == 0:
        assert all(
            sorted(line[i : i + num_prompts]) == list(range(num_prompts)) for i in range(0, len(line), num_prompts)
        )
    counts = [line.count(prompt) for prompt in range(num_prompts)]
    assert max(counts) - min(counts) <= 1
    assert rounds == [prompts_of(index, num_prompts, per_round, seed=3) for index in range(12)]


def test_a_judge_that_compares_sees_the_initial_answer_beside_the_new_one(toy: Toy, machine: None) -> None:
    """A pairwise judge over a real server that prefers the longer answer."""
    folder = toy.root / "pairwise"
    with server(prefers_the_longer) as url:
        changes = {
            "judge.kind": "pairwise",
            "judge.endpoint": url,
            "judge.model": "any",
            "rounds.num_rounds": 1,
            "rounds.prompts_per_round": 8,
        }
        (found,) = iterate(rounds_config(toy, folder, changes))
    before, after = (
        [row["scores"] for row in rows_of_parts(place / "evaluation/scores")]
        for place in (folder / "initial", found.folder)
    )
    assert before == [[0.5, 0.5]] * 16, "the initial answer against itself"
    assert len(after) == 16
    assert all(sum(scores) == 1 for scores in after)
    assert found.metrics["eval/win_rate"] == found.metrics["eval/mean_score"] == sum(ours for ours, _ in after) / 16
    assert all(0.5 <= pair["chosen_score"] <= 1 for pair in pairs(folder, 0))


def prefers_the_longer(question: str) -> str:
    first, second = (re.search(rf"\[answer {name}\]\n(.*?)\n\[end of", question, re.S) for name in "AB")
    assert first is not None
    assert second is not None
    lengths = [len(found[1]) for found in (first, second)]
    return "tie" if lengths[0] == lengths[1] else "A" if lengths[0] > lengths[1] else "B"


@contextmanager
def server(answer: Callable[[str], str]) -> Iterator[str]:
    """An OpenAI-compatible endpoint on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = answer(asked["messages"][-1]["content"])
            body = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *unused: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}/v1"
    finally:
        listening.shutdown()
        listening.server_close()
