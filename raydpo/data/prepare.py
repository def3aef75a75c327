"""From data.train and data.eval to token shards: every line is used or quarantined with its reason.

What comes in: the config and a tokenizer. What goes out: `<folder>/train-*.arrow`, `eval-*.arrow`, a manifest, and
`quarantine.jsonl` beside the folder; a `DataReport`.
Decision: one pass that holds no text in memory, with rows in the order of the files. Which prompts an `eval_fraction`
takes is a property of the prompt alone (its hash), so that adding rows moves no other row between the splits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from raydpo.artifacts import digest, durable
from raydpo.config import Config
from raydpo.data.check import BadRow, confidence, weight
from raydpo.data.encode import Encoded, encode
from raydpo.data.formats import FORMATS, Format, detect
from raydpo.data.read import Line
from raydpo.data.report import DataReport, Tally
from raydpo.data.sources import Source, find
from raydpo.data.store import Store
from raydpo.data.template import Rendered, no_template, open_tokenizer, read_template, render
from raydpo.data.token_rows import fits_tokenized, late_ids, other_tokenizer
from raydpo.errors import DataError
from raydpo.schema.events import Advanced, Note, Observer, StageDone, StageStarted, ignore

VERSION = "data-3"
"""Version of reading and encoding: raise it when the same input may give other ids."""

_BATCH_ROWS = 512
_DETECT_ROWS = 64
_DETECT_LINES = 4096
_HASHES = 1 << 64


def prepare(
    config: Config, tokenizer_path: str, folder: Path, *, write: bool = True, observer: Observer = ignore
) -> DataReport:
    """Read, check and encode all data of a run. write=False does everything but writing.

    A finished preparation in `folder` is taken as it is when files, data section, tokenizer and number of answers are
    the same. Raises DataError with all problems: missing files, no chat template, too many bad lines.
    """
    return _Preparation(config, tokenizer_path, Path(folder), write, observer).run()


@dataclass(frozen=True)
class _Marks:
    """What an example carries besides its text."""

    label: bool = True
    weight: float = 1.0


class _Preparation:
    def __init__(self, config: Config, tokenizer_path: str, folder: Path, write: bool, observer: Observer) -> None:
        self.settings = config.data
        self.objective, self.parameters = config.objective.row, config.objective.parameters
        self.is_unpaired = self.settings.unpair and self.objective.data == "labels"
        self.num_answers = 2 if self.is_unpaired else self.objective.num_answers
        self.with_mismatched = "mismatched" in config.objective.batch_kinds
        self.folder, self.write, self.observer = folder, write, observer
        self.splits: dict[str, list[Source]] = {}
        problems: list[str] = []
        for split, names in (("train", self.settings.train), ("eval", self.settings.eval)):
            self.splits[split], found = find(f"data.{split}", names)
            problems += found
        if not problems and not any(self.splits.values()):
            problems.append("data.train names no data; give at least one file, folder or hub data set.")
        try:
            read_template(self.settings.chat_template)
        except DataError as error:
            problems += error.problems
        if problems:
            raise DataError(problems)
        self.tokenizer = open_tokenizer(tokenizer_path, self.settings.chat_template)

    def run(self) -> DataReport:
        self.observer(StageStarted("data", None, "lines"))
        store = Store(self.folder, self._input_digest()) if self.write else None
        if store is not None and (earlier := store.finished()) is not None:
            report = replace(DataReport.from_json(earlier), reused=True)
            self.observer(StageDone("data", f"{report.pairs_used:,} examples, prepared earlier from the same input"))
            return report
        threshold = self._threshold()
        tally = self._pass(store, threshold)
        if threshold and not tally.pairs["eval"] and len(tally.prompt_hashes) > 1:
            # So few prompts that the share came out empty: the one with the smallest hash is held out.
            tally = self._pass(store, min(tally.prompt_hashes) + 1)
        report = tally.report()
        if self.write:
            durable.write_text(
                self.folder.parent / "quarantine.jsonl", "".join(f"{entry}\n" for entry in tally.entries)
            )
        self._judge(report, tally)
        if store is not None:
            if self.with_mismatched:
                store.add_mismatched(self.settings.max_length)
            store.finish(report.to_json())
        self._tell(report)
        return report

    def _input_digest(self) -> str:
        return digest.digest_of(
            {
                "version": VERSION,
                "files": {split: [(one.name, one.digest()) for one in found] for split, found in self.splits.items()},
                "settings": self.settings.model_dump(mode="json"),
                "tokenizer": self.tokenizer.digest,
                "num_answers": self.num_answers,
                "data": self.objective.data,
                "with_mismatched": self.with_mismatched,
            }
        )

    def _threshold(self) -> int:
        """Prompts whose hash is below this go from train to eval."""
        if not self.settings.eval_fraction:
            return 0
        if self.splits["eval"]:
            self.observer(Note("warning", "data.eval_fraction is not used, since data.eval names held-out data"))
            return 0
        return int(self.settings.eval_fraction * _HASHES)

    def _pass(self, store: Store | None, threshold: int) -> Tally:
        """Read everything once. Problems of whole files are raised together at the end."""
        tally = Tally(examples_per_line=2 if self.is_unpaired else 1)
        problems: list[str] = []
        if store is not None:
            store.begin()
        for split, sources in self.splits.items():
            for source in sources:
                try:
                    for place, example, marks in self._examples(source, tally):
                        target = "eval" if example.prompt_hash < threshold else split
                        keys = Store.keys(example)
                        if store is not None:
                            for part, part_keys, label in self._parts(example, keys, marks.label):
                                store.add(target, part, part_keys, place, label, marks.weight)
                        tally.desirable[target] += marks.label
                        lengths = (len(example.prompt_ids), max(map(len, example.answer_ids)))
                        tally.use(target, example.prompt_hash, lengths, keys)
                except DataError as error:
                    problems += error.problems
        if problems:
            raise DataError(problems)
        return tally

    def _parts(
        self, example: Encoded, keys: tuple[str, ...], label: bool
    ) -> list[tuple[Encoded, tuple[str, ...], bool]]:
        """What becomes of one line: itself, or its two answers as a desirable and an undesirable one."""
        if not self.is_unpaired:
            return [(example, keys, label)]
        answers = zip(example.answer_ids, keys, (True, False), strict=True)
        return [(replace(example, answer_ids=[ids]), (key,), side) for ids, key, side in answers]

    def _examples(self, source: Source, tally: Tally) -> Iterator[tuple[str, Encoded, _Marks]]:
        """Good examples of one source with their places; everything else is put down in the tally."""
        rows = source.rows()
        seen = list(itertools.islice(rows, _DETECT_ROWS))
        while len(seen) < _DETECT_LINES and not any(line.row is not None for line in seen):
            more = list(itertools.islice(rows, _DETECT_ROWS))
            if not more:
                break
            seen += more
        good = [line.row for line in seen if line.row is not None]
        name = self.settings.format if self.settings.format != "auto" else detect(good)
        layout = FORMATS.get(name) if name is not None else None
        tally.formats[source.name] = _described(layout, good)
        title = f", {layout.title}" if layout is not None else f"; none of {', '.join(FORMATS)} fits"
        self.observer(Note("info", f"{source.name}: format {tally.formats[source.name]}{title}"))
        self._check_labels(source, layout)
        lines = itertools.chain(seen, rows)
        while batch := list(itertools.islice(lines, _BATCH_ROWS)):
            tally.lines_read += len(batch)
            yield from self._batch(source, batch, layout, tally)
            self.observer(Advanced("data", tally.lines_read))

    def _check_labels(self, source: Source, layout: Format | None) -> None:
        """Raise DataError for a file of pairs where labels are needed, or of labels where pairs are to be split."""
        if self.objective.data != "labels" or layout is None:
            return
        if layout.name not in ("labelled", "text") and not self.is_unpaired:
            raise DataError(
                f"{source.name} holds pairs ({layout.title}); objective {self.objective.name} reads rows of prompt, completion "
                "and label, and would have had none. Set data.unpair: true to read each pair as a desirable and an "
                "undesirable answer."
            )
        if layout.name == "labelled" and self.is_unpaired:
            raise DataError(
                f"{source.name} holds labelled answers already; data.unpair would have split pairs, of which it has none. "
                "Leave data.unpair out, or name files of pairs."
            )

    def _batch(
        self, source: Source, batch: list[Line], layout: Format | None, tally: Tally
    ) -> Iterator[tuple[str, Encoded, _Marks]]:
        outcomes = [self._text(source, line, layout) for line in batch]
        texts = [outcome[0] for outcome in outcomes if isinstance(outcome, tuple)]
        limits = (self.settings.max_length, self.settings.overlong)
        encoded = iter(encode(self.tokenizer, texts, max_length=limits[0], overlong=limits[1]))
        for line, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, BadRow):
                tally.leave_out(source.name, line, outcome)
                continue
            text, marks = outcome
            tally.counts["control_tokens_found"] += text.found
            example = next(encoded)
            if isinstance(example, BadRow):
                tally.leave_out(source.name, line, example)
                continue
            tally.counts["truncated_prompts"] += example.truncated
            tally.counts["boundary_merges"] += example.merged
            yield f"{source.name}:{line.number}", example, marks

    def _text(self, source: Source, line: Line, layout: Format | None) -> tuple[Rendered, _Marks] | BadRow:
        """Text of one line, or why there is none. Raises DataError when the whole file cannot be written down."""
        try:
            if line.bad is not None or line.row is None:
                return line.bad or BadRow("not_an_object", "nothing was read")
            if layout is None:
                return BadRow("unknown_format", f"fields: {', '.join(map(str, line.row))[:160] or 'none'}")
            if self.settings.confidence_column is not None and self.settings.min_confidence is not None:
                confidence(line.row, self.settings.confidence_column, self.settings.min_confidence)
            column = self.settings.weight_column
            factor = 1.0 if column is None else weight(line.row, column)
            if self.settings.format == "auto" and layout.name != "tokenized" and fits_tokenized(line.row):
                raise late_ids(f"{source.name}:{line.number}", layout.name)
            example = layout.convert(line.row, self.num_answers)
            if self.objective.data == "labels" and layout.name == "text":
                raise BadRow("missing_field", "label is missing")
            if self.objective.data == "answers" and not example.label:
                raise BadRow("undesirable", "label is false")
            if example.tokens is not None and example.tokens.tokenizer != self.tokenizer.ids_digest:
                raise other_tokenizer(example.tokens, self.tokenizer, f"{source.name}:{line.number}")
            if example.is_conversation and example.plain is None and not self.tokenizer.has_template:
                raise no_template(self.tokenizer, source.name)
            return render(example, self.tokenizer, self.settings.control_tokens), _Marks(example.label, factor)
        except BadRow as bad:
            return bad
        except RecursionError:
            return BadRow("malformed_json", "nested too deeply")

    def _judge(self, report: DataReport, tally: Tally) -> None:
        """Raise what makes the data as a whole unusable."""
        problems = []
        where = f"; every line is listed in {self.folder.parent / 'quarantine.jsonl'}" if self.write else ""
        share = report.num_bad / max(1, report.lines_read)
        if share > self.settings.max_bad_fraction:
            hint = "" if "unknown_format" not in report.quarantined else f" Known layouts: {', '.join(FORMATS)}."
            problems.append(
                f"{report.num_bad:,} of {report.lines_read:,} lines ({share:.1%}) cannot be used, and "
                f"data.max_bad_fraction allows {self.settings.max_bad_fraction:.1%}. Training would run on what is "
                f"left{where}. Mend the rows, set data.format if the layout was mistaken, or raise "
                f"data.max_bad_fraction.{hint}\n{report.table()}"
            )
        if self.settings.overlong == "error" and report.quarantined.get("overlong"):
            problems.append(
                f"{report.quarantined['overlong']:,} examples are longer than data.max_length = "
                f"{self.settings.max_length} tokens and data.overlong is error; first: "
                f"{'; '.join(report.samples['overlong'])}. Raise data.max_length, or set data.overlong to drop or "
                "truncate_prompt."
            )
        if not problems and report.eval_pairs and not report.train_pairs and not self.splits["eval"]:
            problems.append(
                f"data.eval_fraction = {self.settings.eval_fraction:g} leaves nothing to train on: all "
                f"{report.eval_pairs:,} examples have prompts that go to eval. Use a smaller share, or name held-out "
                "data in data.eval."
            )
        if self.with_mismatched and not problems:
            problems += [self._one_prompt(split) for split in self.splits if tally.num_prompts(split) == 1]
        for split, sources in self.splits.items():
            if sources and not problems and not report.to_json()[f"{split}_pairs"]:
                problems.append(
                    f"data.{split} gives no example: of {report.lines_read:,} lines none is left for {split}"
                    f"{where}.\n{report.table()}"
                )
        if problems:
            raise DataError(problems)

    def _tell(self, report: DataReport) -> None:
        left_out = ", ".join(f"{reason} {count:,}" for reason, count in report.quarantined.items())
        self.observer(
            StageDone(
                "data",
                f"{report.lines_read:,} lines: {report.train_pairs:,} train, {report.eval_pairs:,} eval"
                f"{f'; left out: {left_out}' if left_out else ''}",
            )
        )
        if report.eval_prompts_in_train:
            text = f"{report.eval_prompts_in_train:,} eval examples have a prompt that is also trained on"
            self.observer(Note("warning", text))
        if self.objective.data == "labels":
            self._tell_labels(report)
        if report.control_tokens_found:
            how = {"plain": "read as plain text", "allow": "read as control tokens", "quarantine": "left out"}
            text = f"{report.control_tokens_found:,} control tokens in the data, {how[self.settings.control_tokens]}"
            self.observer(Note("info", text))

    def _one_prompt(self, split: str) -> str:
        """Why a split of one prompt is no data for an objective that compares prompts with the answers to others."""
        name = f"data.{split}"
        if split == "eval" and not self.splits["eval"]:
            name = f"data.eval_fraction = {self.settings.eval_fraction:g}, which holds out one prompt,"
        return (
            f"{name} has a single prompt, and objective {self.objective.name} compares each prompt with the answer to another "
            "one. Give at least two prompts, or use objective apo_zero_unpaired, which compares none."
        )

    def _tell_labels(self, report: DataReport) -> None:
        totals = {"train": report.train_pairs, "eval": report.eval_pairs}
        sides = {split: (report.desirable[split], total - report.desirable[split]) for split, total in totals.items()}
        for split, (desirable, undesirable) in sides.items():
            if not desirable and not undesirable:
                continue
            self.observer(Note("info", f"{split}: {desirable:,} desirable and {undesirable:,} undesirable answers"))
            if not desirable or not undesirable:
                what = {"train": "nothing is compared with them", "eval": "there will be no margins"}[split]
                self.observer(Note("warning", f"{split}: all answers have one label; {what}"))
        desirable, undesirable = sides["train"]
        if self.objective.name == "kto" and desirable and undesirable:
            weights = [self.parameters[f"{side}_weight"] for side in ("desirable", "undesirable")]
            gain, loss = weights[0] * desirable, weights[1] * undesirable
            if not loss <= gain <= 4 / 3 * loss:
                text = (
                    f"kto: desirable answers weigh {gain:g} and undesirable ones {loss:g} in all; the paper advises a ratio of "
                    f"1 to 4/3. objective.desirable_weight: {loss / desirable:.3g} would make it 1"
                )
                self.observer(Note("warning", text))


def _described(layout: Format | None, rows: list[dict[str, object]]) -> str:
    if layout is None:
        return "unknown"
    if layout.name not in ("standard", "conversational"):
        return layout.name
    explicit = sum(row.get("prompt") is not None for row in rows) * 2 > len(rows)
    return f"{layout.name}, {'explicit' if explicit else 'implicit'} prompt"
