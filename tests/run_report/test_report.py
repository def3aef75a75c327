"""The report of a run: its numbers are those of the files, its verdict has the right sign, and nothing in it is live."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydpo.artifacts.kept_pairs import SCHEMA, put_together, read_kept, write_part
from raydpo.cli import main
from raydpo.metrics.intervals import wilson
from raydpo.run_report.pair_views import by_confidence, by_length, by_source, most_and_least
from raydpo.run_report.run_facts import PairNats, RunFacts, read_run
from raydpo.run_report.run_verdict import mean_interval, verdict_on
from raydpo.run_report.token_texts import TokenTexts
from raydpo.run_report.write import write

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def run(folder: Path, accuracy: float = 0.8, number: int = 400, **more: Any) -> Path:
    folder.mkdir(parents=True)
    first = {"eval/rewards/accuracies": 0.5, "eval/rewards/ties": 1.0, "eval/loss": 0.6931, "eval/log_ratios/abs": 0.0}
    last = {"eval/rewards/accuracies": accuracy, "eval/rewards/ties": 0.0, "eval/loss": 0.5, "eval/log_ratios/abs": 2.0}
    summary = {
        "data": {"lines_read": 999, "eval_pairs": number, "train_pairs": 500, "quarantined": {"empty_answer": 3}},
        "reference": {"rows": 1000, "rows_scored": 250},
        "train": {"steps": 4, "reason": "all steps done", "skipped_steps": 0},
        "eval": {"first": first, "last": {**last, **more}},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(
        f"model: {{path: start}}\nobjective: {{name: dpo, beta: 0.1}}\nrun: {{dir: '{HOSTILE}'}}\n"
    )
    lines = [
        {"step": step, "loss": 0.7 - 0.05 * step, "rewards/accuracies": 0.6, "tokens_per_s": 100.0}
        for step in range(1, 5)
    ]
    lines = [{"step": 0, **first}, *lines, {"step": 4, **last, **more}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "lo')
    return folder


def pair(margin: float, difference: int = 0, source: str = "a.jsonl", before: float = 0.0) -> PairNats:
    reference = [np.array([before], np.float32), np.array([0.0], np.float32)]
    policy = [np.array([before + margin], np.float32), np.array([0.0], np.float32)]
    return PairNats(
        0, source, [1], [[2] * (1 + max(0, difference)), [3] * (1 + max(0, -difference))], policy, reference
    )


def test_the_verdict_has_the_sign_of_the_data(tmp_path: Path) -> None:
    for name, accuracy, standing, start in (
        ("up", 0.8, "better", "Better: "),
        ("down", 0.3, "worse", "Worse: "),
        ("flat", 0.52, "unclear", "No difference"),
    ):
        found = verdict_on(read_run(run(tmp_path / name, accuracy)))
        assert found.standing == standing
        assert found.sentences[0].startswith(start)
        low, high = wilson(accuracy, 400)
        assert f"{accuracy:.1%} [{low:.1%}, {high:.1%}] of 400 held-out pairs" in found.sentences[0]


def test_what_is_worth_a_look_is_said_where_it_is_there(tmp_path: Path) -> None:
    fine = verdict_on(read_run(run(tmp_path / "fine", 0.6)))
    assert len(fine.sentences) == 1
    fallen = verdict_on(read_run(run(tmp_path / "fallen", 0.6, **{"eval/log_ratios/chosen": -12.0})))
    assert "less likely by 12.0 nats (likelihood displacement)" in " ".join(fallen.sentences)
    far = verdict_on(read_run(run(tmp_path / "far", 0.6, **{"eval/log_ratios/abs": 80.0})))
    assert "moved far: 80.0 nats" in " ".join(far.sentences)
    overfitted = verdict_on(read_run(run(tmp_path / "over", 0.4)))
    assert "fewer steps would do" in " ".join(overfitted.sentences)


def test_without_held_out_pairs_nothing_is_claimed(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    del summary["eval"]
    (folder / "summary.json").write_text(json.dumps(summary))
    assert verdict_on(read_run(folder)).standing == "unknown"


def test_rounds_are_judged_by_their_win_rate(tmp_path: Path) -> None:
    def of(rate: float, low: float, high: float) -> str:
        metrics = {"eval/win_rate": rate, "eval/win_rate_low": low, "eval/win_rate_high": high, "pairs/made": 9}
        loop = {"train_s": 1.0}
        return verdict_on(RunFacts(tmp_path, {}, {"rounds": [{"index": 0, "metrics": metrics, "loop": loop}]})).standing

    assert of(0.7, 0.6, 0.8) == "better"
    assert of(0.3, 0.2, 0.4) == "worse"
    assert of(0.5, 0.4, 0.6) == "unclear"


def test_shares_by_length_source_and_reference_are_counted() -> None:
    long = [pair(1.0, difference=n) for n in range(10, 60)]
    short = [pair(-1.0, difference=-n) for n in range(10, 60)]
    bars = by_length([*long, *short])
    assert bars[0].value == 0
    assert bars[-1].value == 1
    assert sum(int(re.search(r"\((\d+)\)", bar.label)[1]) for bar in bars) == 100  # type: ignore[index]
    assert by_length([pair(1.0)] * 30) == []
    sources = by_source([pair(1.0, source="x/a.jsonl")] * 3 + [pair(-1.0, source="x/b.jsonl")])
    assert [(bar.label, bar.value) for bar in sources] == [("a.jsonl (3)", 1.0), ("b.jsonl (1)", 0.0)]
    assert by_source([pair(1.0)] * 3) == []
    unsure = [pair(-1.0, before=float(n)) for n in range(20)] + [pair(1.0, before=float(n)) for n in range(20, 100)]
    assert [round(bar.value, 2) for bar in by_confidence(unsure)] == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_the_pairs_that_moved_most_and_least_come_first() -> None:
    most, least = most_and_least([pair(float(n)) for n in range(-5, 6)], TokenTexts(None))
    assert [view.margin for view in most] == [5, 4, 3, 2]
    assert [view.margin for view in least] == [-5, -4, -3, -2]
    assert most[0].chosen[0].strength == 9
    assert least[0].chosen[0].strength == -9
    assert most[0].log_ratios == (5.0, 0.0)


def test_an_interval_of_a_mean_holds_it() -> None:
    values = np.random.default_rng(3).normal(1.0, 2.0, 500)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / 500**0.5
    assert abs(low - (values.mean() - half)) < 0.05
    assert abs(high - (values.mean() + half)) < 0.05


class _Page(HTMLParser):
    """Tags, anchors and targets of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.links, self.tags, self.loaded = set[str](), set[str](), list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if found.get("id"):
            self.ids.add(str(found["id"]))
        if tag == "a":
            self.links.add(str(found["href"]))
        self.loaded += [
            str(found[name]) for name in ("src", "href") if name in found and not str(found[name]).startswith("#")
        ]
        assert not [name for name in found if name.startswith("on")]


def test_the_page_is_one_file_that_loads_nothing_and_escapes_what_people_wrote(tmp_path: Path) -> None:
    path = write([run(tmp_path / "run")], tmp_path / "report.html")
    text = path.read_text()
    page = _Page(text)
    assert page.loaded == []
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert {link[1:] for link in page.links} <= page.ids
    assert len(text) < 5_000_000
    assert "80.0% [" in text
    assert "left out: empty_answer" in text
    assert "75% were in the cache" in text


def test_several_runs_are_compared_by_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [run(tmp_path / name, accuracy) for name, accuracy in (("one", 0.7), ("two", 0.9))]
    config = (folders[1] / "config.yaml").read_text().replace("0.1", "0.5")
    (folders[1] / "config.yaml").write_text(config)
    out = tmp_path / "comparison.html"
    assert main(["report", *map(str, folders), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == str(out)
    text = out.read_text()
    assert "<td>objective.beta</td><td>0.1</td><td>0.5</td>" in text
    assert "objective.name" not in text
    assert "share won against movement" in text
    assert _Page(text).loaded == []


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err


def test_parts_of_ranks_are_put_together_in_order(tmp_path: Path) -> None:
    def part(examples: list[int]) -> dict[str, list[Any]]:
        both = [(example, answer) for example in examples for answer in (1, 0)]
        return {
            "example": [example for example, _ in both],
            "answer": [answer for _, answer in both],
            "policy_nats": [[float(example), float(answer)] for example, answer in both],
            "reference_nats": [[] for _ in both],
        }

    (tmp_path / "run").mkdir()
    write_part(tmp_path / "staging", 7, 0, part([2, 0]))
    write_part(tmp_path / "staging", 7, 1, part([1]))
    put_together(tmp_path / "staging", 6, tmp_path / "run")
    assert read_kept(tmp_path / "run") is None
    put_together(tmp_path / "staging", 7, tmp_path / "run")
    found = read_kept(tmp_path / "run")
    assert found is not None
    step, table = found
    assert step == 7
    assert table.schema.names == SCHEMA.names
    assert [(row["example"], row["answer"]) for row in table.to_pylist()] == [(n, m) for n in range(3) for m in (0, 1)]
    assert table["policy_nats"].to_pylist()[3] == [1.0, 1.0]


def test_tokens_have_their_text_with_the_space_before_it(tmp_path: Path) -> None:
    from raydpo.quickstart.bpe import train_bpe

    tokenizer = train_bpe(["one two three"] * 3, 300, tmp_path)
    ids = tokenizer("one two three", add_special_tokens=False)["input_ids"]
    texts = TokenTexts(tmp_path / "tokenizer.json")
    assert "".join(texts.of(token) for token in ids) == "one two three"
    assert texts.text(ids) == "one two three"
