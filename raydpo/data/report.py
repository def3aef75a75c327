"""What became of every line: the tally while reading, and the report at the end.

Decision: `lines_read == pairs_used + sum(quarantined.values())` is checked when the report is made, so that a line can
neither vanish nor be counted twice; a mixture adds lines that are not drawn, or used again.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from raydpo.data.bad_rows import APART, REASONS, BadRow
from raydpo.data.column_use import ColumnUse
from raydpo.data.read import Line

_SAMPLES_PER_REASON = 3
_OF_ENTRY = ("deduplicated", "train", "eval", "repeated", "lines", "quarantined", "not_drawn")


def num_bad(quarantined: Mapping[str, int]) -> int:
    """Lines that count against data.max_bad_fraction."""
    return sum(count for reason, count in quarantined.items() if reason not in APART)


def table(quarantined: Mapping[str, int], samples: Mapping[str, Sequence[str]]) -> str:
    """Reasons with counts, meaning and the first place, one a line."""
    lines = []
    for reason, count in quarantined.items():
        first = samples.get(reason, [""])[0]
        lines.append(f"  {reason:<18} {count:>9,}  {REASONS[reason]}; first: {first}")
    return "\n".join(lines)


@dataclass(frozen=True)
class DataReport:
    """What a preparation found. Lengths are in tokens; a pair counts with its longest answer.

    lines_read: in all files.
    pairs_used: examples that are used.
    train_pairs, eval_pairs: how many of them are in each split.
    quarantined: lines left out, by reason.
    formats: layout of each file.
    samples: the first places of each reason.
    control_tokens_found: control tokens spelled out in the data.
    reasoning_dropped: pieces of reasoning in earlier turns of prompts that the chat template leaves out.
    truncated_prompts: examples whose prompt was cut.
    boundary_merges: examples whose prompt and answer were tokenised separately.
    duplicates: examples that were there before (they are used).
    eval_prompts_in_train: eval examples whose prompt is also trained on.
    lengths: mean, percentiles and maximum of prompt_tokens, answer_tokens and total_tokens.
    desirable: examples of each split whose label is true.
    examples_per_line: 2 when pairs are read as two answers each (data.unpair).
    columns_not_read: columns of each source that held something and were not read.
    contradicted_pairs: pairs whose ratings say that the rejected answer is better (they are used).
    splits_by_name: what was decided on data sets with training and held-out parts, a sentence each.
    entries: key of the config ("train", "eval") -> name of an entry -> counts: lines and quarantined; deduplicated, not_drawn
        and repeated (lines); train and eval (examples that it gave to each split).
    not_drawn, repeated, deduplicated: good lines that a mixture did not draw, further uses of lines, and lines left out by
        data.deduplicate.
    ends: how rows begin and end, and what says so.
    end_ids: tokens that answers are taught to end with.
    empty_prompts: examples whose prompt is a BOS alone, which the tokenizer would not have written.
    reused: an earlier preparation of the same input was taken.
    """

    lines_read: int
    pairs_used: int
    train_pairs: int
    eval_pairs: int
    quarantined: dict[str, int]
    formats: dict[str, str]
    samples: dict[str, list[str]] = field(default_factory=dict)
    control_tokens_found: int = 0
    reasoning_dropped: int = 0
    truncated_prompts: int = 0
    boundary_merges: int = 0
    duplicates: int = 0
    eval_prompts_in_train: int = 0
    lengths: dict[str, dict[str, float]] = field(default_factory=dict)
    desirable: dict[str, int] = field(default_factory=dict)
    examples_per_line: int = 1
    columns_not_read: dict[str, list[str]] = field(default_factory=dict)
    contradicted_pairs: int = 0
    splits_by_name: list[str] = field(default_factory=list)
    entries: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    not_drawn: int = 0
    repeated: int = 0
    deduplicated: int = 0
    ends: str = ""
    end_ids: list[int] = field(default_factory=list)
    empty_prompts: int = 0
    reused: bool = False

    def __post_init__(self) -> None:
        used = self.pairs_used // self.examples_per_line - self.repeated
        accounted = used + sum(self.quarantined.values()) + self.not_drawn + self.deduplicated
        assert self.lines_read == accounted, f"{self.lines_read} lines read, {accounted} accounted for"
        assert self.pairs_used == self.train_pairs + self.eval_pairs

    def to_json(self) -> dict[str, Any]:
        """Nested plain values, as in summary.json under `data`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataReport:
        """The inverse of `to_json`."""
        return cls(**value)


class Tally:
    """Counts of one pass over the data."""

    def __init__(self, examples_per_line: int = 1) -> None:
        self.examples_per_line = examples_per_line
        self.lines_read = 0
        self.pairs, self.desirable = {"train": 0, "eval": 0}, {"train": 0, "eval": 0}
        self.quarantined: Counter[str] = Counter()
        self.samples: dict[str, list[str]] = {}
        self.entries: list[str] = []
        self.formats: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.uses: list[ColumnUse] = []
        self._prompt_tokens, self._answer_tokens = array("i"), array("i")
        self.entries_of_key: dict[str, dict[str, Counter[str]]] = {"train": {}, "eval": {}}
        self._rows = array("Q")
        self._prompts = {"train": array("Q"), "eval": array("Q")}

    def leave_out(self, source: str, line: Line, bad: BadRow) -> None:
        """Count one line under its reason and keep its entry for quarantine.jsonl."""
        self.quarantined[bad.reason] += 1
        samples = self.samples.setdefault(bad.reason, [])
        if len(samples) < _SAMPLES_PER_REASON:
            samples.append(f"{source}:{line.number}: {bad.detail}")
        entry = {"file": source, "line": line.number, "reason": bad.reason, "detail": bad.detail}
        self.entries.append(json.dumps({**entry, "sample": line.sample()}))

    def use(self, split: str, prompts: np.ndarray, lengths: tuple[np.ndarray, np.ndarray], rows: np.ndarray) -> None:
        """Count the examples of some lines.

        prompts: [n] uint64, hashes. lengths: [n] int32 each, tokens of the prompt and of the longest answer. rows: [n, 2]
        uint64, equal for equal examples.
        """
        self.pairs[split] += self.examples_per_line * len(prompts)
        self._prompt_tokens.frombytes(lengths[0].astype(np.int32).tobytes())
        self._answer_tokens.frombytes(lengths[1].astype(np.int32).tobytes())
        self._rows.frombytes(rows.tobytes())
        self._prompts[split].frombytes(prompts.tobytes())

    def read_to_json(self) -> dict[str, Any]:
        """What was counted while rows were read and encoded, before any of them was used, as plain values."""
        return {
            "lines_read": self.lines_read,
            "quarantined": dict(self.quarantined),
            "samples": self.samples,
            "entries": self.entries,
            "counts": dict(self.counts),
        }

    def absorb(self, read: Mapping[str, Any]) -> None:
        """Take in what `read_to_json` gave of later rows."""
        self.lines_read += read["lines_read"]
        self.quarantined.update(read["quarantined"])
        for reason, places in read["samples"].items():
            samples = self.samples.setdefault(reason, [])
            samples += places[: _SAMPLES_PER_REASON - len(samples)]
        self.entries += read["entries"]
        self.counts.update(read["counts"])

    def repeat(self, split: str, num_lines: int) -> None:
        """Count the examples of lines that were used before, once more."""
        self.pairs[split] += self.examples_per_line * num_lines

    def of_entry(self, key: str, name: str) -> Counter[str]:
        """Counts of one entry of data.train or data.eval."""
        return self.entries_of_key[key].setdefault(name, Counter(dict.fromkeys(_OF_ENTRY, 0)))

    def num_prompts(self, split: str) -> int:
        """Different prompts of a split so far."""
        return len(np.unique(self._hashes(split)))

    def prompt_hashes(self) -> np.ndarray:
        """Hashes of all prompts used so far, each once, in rising order: [n] uint64."""
        return np.unique(np.concatenate([self._hashes("train"), self._hashes("eval")]))

    def _hashes(self, split: str) -> np.ndarray:
        return np.asarray(self._prompts[split], np.uint64)

    def num_duplicates(self) -> int:
        """Lines used so far whose examples were used before."""
        rows = np.asarray(self._rows, np.uint64).reshape(-1, 2)
        rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
        return int((rows[1:] == rows[:-1]).all(axis=1).sum())

    def by_reason(self) -> dict[str, int]:
        """Lines left out so far, in the order of `REASONS`."""
        return {reason: self.quarantined[reason] for reason in REASONS if self.quarantined[reason]}

    def report(self) -> DataReport:
        """The report of everything counted."""
        quarantined = self.by_reason()
        counts = [entry for entries in self.entries_of_key.values() for entry in entries.values()]
        return DataReport(
            lines_read=self.lines_read,
            pairs_used=sum(self.pairs.values()),
            train_pairs=self.pairs["train"],
            eval_pairs=self.pairs["eval"],
            quarantined=quarantined,
            formats=self.formats,
            samples={reason: self.samples[reason] for reason in quarantined},
            control_tokens_found=self.counts["control_tokens_found"],
            reasoning_dropped=self.counts["reasoning_dropped"],
            truncated_prompts=self.counts["truncated_prompts"],
            boundary_merges=self.counts["boundary_merges"],
            duplicates=self.num_duplicates(),
            empty_prompts=self.counts["empty_prompts"],
            eval_prompts_in_train=int(np.isin(self._hashes("eval"), self._hashes("train")).sum()),
            lengths=self._lengths(),
            desirable=dict(self.desirable),
            examples_per_line=self.examples_per_line,
            columns_not_read={use.source: sorted(use.unread) for use in self.uses if use.unread},
            contradicted_pairs=sum(use.contradicted for use in self.uses),
            entries={
                key: {name: {what: int(n) for what, n in entry.items() if n} for name, entry in entries.items()}
                for key, entries in self.entries_of_key.items()
                if entries
            },
            not_drawn=sum(entry["not_drawn"] for entry in counts),
            repeated=sum(entry["repeated"] for entry in counts),
            deduplicated=sum(entry["deduplicated"] for entry in counts),
        )

    def _lengths(self) -> dict[str, dict[str, float]]:
        if not self._prompt_tokens:
            return {}
        prompts = np.asarray(self._prompt_tokens, np.int32).astype(np.int64)
        answers = np.asarray(self._answer_tokens, np.int32).astype(np.int64)
        columns = {"prompt_tokens": prompts, "answer_tokens": answers, "total_tokens": prompts + answers}
        return {
            name: {
                "mean": round(float(values.mean()), 1),
                **{f"p{share}": float(np.percentile(values, share, method="lower")) for share in (50, 95, 99)},
                "max": float(values.max()),
            }
            for name, values in columns.items()
        }
