"""From data.train and data.eval to token shards: every line is used or quarantined with its reason.

What comes in: the config and a tokenizer. What goes out: `<folder>/train-*.arrow`, `eval-*.arrow`, a manifest, and
`quarantine.jsonl` next to the folder; a `DataReport`.
Decision: one pass that holds no text in memory, with rows in the order of the files. Which prompts an `eval_fraction`
takes is a property of the prompt alone (its hash), so that adding rows moves no other row between the splits.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from raydpo.artifacts import digest, durable
from raydpo.config import Config
from raydpo.config.mixture_entry import entries_of
from raydpo.config.outside import is_outside, source_sha256
from raydpo.data.bad_rows import BadRow, confidence, weight
from raydpo.data.embedding_rows import Beyond, Embedding
from raydpo.data.encode import Encoded
from raydpo.data.ends_said import ends_said
from raydpo.data.findings import refuse, tell
from raydpo.data.formats import FORMATS, Format
from raydpo.data.lines import encode_lines, taken
from raydpo.data.messages import Example, Row
from raydpo.data.mixture import Portion, find_mixture
from raydpo.data.report import DataReport, Tally
from raydpo.data.row_ends import decided
from raydpo.data.row_reader import RowReader
from raydpo.data.shown_rows import RowViewer
from raydpo.data.sources import Source
from raydpo.data.store import Store
from raydpo.data.template import Rendered, no_template, open_tokenizer, read_template, render
from raydpo.data.token_rows import other_tokenizer
from raydpo.errors import DataError
from raydpo.schema.events import Note, Observer, StageDone, StageStarted, ignore

VERSION = "data-6"
"""Version of reading and encoding: raise it when the same input may give other ids."""

_DETECT_ROWS = 64
_DETECT_LINES = 4096
_HASHES = 1 << 64


def prepare(
    config: Config,
    tokenizer_path: str,
    folder: Path,
    *,
    write: bool = True,
    observer: Observer = ignore,
    embedding: Embedding | None = None,
    model_folders: Sequence[Path] = (),
    viewer: RowViewer | None = None,
) -> DataReport:
    """Read, check and encode all data of a run. write=False does everything but writing.

    embedding: what the ids have to fit into; None: unknown. model_folders: asked in order for the model's end tokens; none:
    the tokenizer's folder is. viewer: is shown every used row. A finished preparation in `folder` is taken as it is when files,
    data section, tokenizer and number of answers are the same. Raises DataError with all problems: missing files, no chat
    template, too many bad lines, tokens beyond the embedding.
    """
    return _Preparation(config, tokenizer_path, Path(folder), write, observer, embedding, model_folders, viewer).run()


class _Beside(NamedTuple):
    """What goes with the ids of a row: its label and weight, and what the ids were made from."""

    label: bool
    factor: float
    example: Example
    text: Rendered


class _Preparation:
    def __init__(
        self,
        config: Config,
        tokenizer_path: str,
        folder: Path,
        write: bool,
        observer: Observer,
        embedding: Embedding | None,
        model_folders: Sequence[Path],
        viewer: RowViewer | None,
    ) -> None:
        self.config, self.settings = config, config.data
        self.objective = config.objective.row
        self.is_unpaired = self.settings.unpair and self.objective.data == "labels"
        self.num_answers = 2 if self.is_unpaired else self.objective.num_answers
        self.with_mismatched = "mismatched" in config.objective.batch_kinds
        self.folder, self.write, self.observer, self.viewer = folder, write, observer, viewer
        unless = "data.eval" if self.settings.eval else "data.eval_fraction" if self.settings.eval_fraction else None
        train, held_out = entries_of(self.settings.train), entries_of(self.settings.eval)
        self.mixture = find_mixture(train, held_out, seed=config.run.seed, unless=unless)
        problems = list(self.mixture.problems)
        self.splits = {"train": self.mixture.train, "eval": self.mixture.eval}
        if not problems and not any(self.splits.values()):
            problems.append("data.train names no data; give at least one file, folder or hub data set.")
        try:
            read_template(self.settings.chat_template)
        except DataError as error:
            problems += error.problems
        if problems:
            raise DataError(problems)
        self.tokenizer = open_tokenizer(tokenizer_path, self.settings.chat_template)
        self.tokenizer.ends = decided(self.tokenizer, self.settings.bos, self.settings.eos, model_folders)
        self.beyond = Beyond(self.tokenizer, embedding)

    def run(self) -> DataReport:
        self.observer(StageStarted("data", None, "lines"))
        store = Store(self.folder, self._input_digest()) if self.write else None
        if store is not None and (earlier := _as_report(store.finished())) is not None:
            report = replace(earlier, reused=True)
            self.observer(StageDone("data", f"{report.pairs_used:,} examples, prepared earlier from the same input"))
            return report
        if store is not None and store.damage:
            text = f"the data that was prepared in {self.folder} is not used: {store.damage}. It is prepared again"
            self.observer(Note("warning", text))
        with nullcontext() if store is None else store.dropped_on_error():
            return self._prepared(store)

    def _prepared(self, store: Store | None) -> DataReport:
        ends = ends_said(self.tokenizer)
        for note in filter(None, [*self.mixture.notes, ends.text, ends.added]):
            self.observer(Note("info", note))
        threshold = self._threshold()
        tally = self._pass(store, threshold)
        self.beyond.refuse()
        if threshold and not tally.pairs["eval"] and len(tally.prompt_hashes) > 1:
            # So few prompts that the share came out empty: the one with the smallest hash is held out.
            tally = self._pass(store, min(tally.prompt_hashes) + 1)
        report = replace(tally.report(), splits_by_name=self.mixture.notes, ends=ends.text, end_ids=list(ends.ids))
        quarantine = self.folder.parent / "quarantine.jsonl" if self.write else None
        if quarantine is not None:
            durable.write_text(quarantine, "".join(f"{entry}\n" for entry in tally.entries))
        refuse(report, tally, self.config, quarantine)
        if store is not None:
            if self.with_mismatched:
                store.add_mismatched(self.settings.max_length)
            store.finish(report.to_json())
        tell(report, self.config, self.observer)
        if note := self.beyond.note():
            self.observer(Note("info", note))
        return report

    def _input_digest(self) -> str:
        return digest.digest_of(
            {
                "version": VERSION,
                "files": {
                    split: [(one.name, one.digest()) for portion in portions for one in portion.sources]
                    for split, portions in self.splits.items()
                },
                "seeds": [
                    portion.seed for portion in self.splits["train"] + self.splits["eval"] if portion.entry.is_drawn
                ],
                "settings": self.settings.model_dump(mode="json"),
                "tokenizer": self.tokenizer.digest,
                "ends": self.tokenizer.ends.facts(),
                "num_answers": self.num_answers,
                "data": self.objective.data,
                "with_mismatched": self.with_mismatched,
                **({"num_embeddings": self.beyond.num_rows} if self.beyond.is_needed else {}),
                **({"format_sha256": source_sha256(layout)} if is_outside(layout := self.settings.format) else {}),
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
        if self.viewer is not None:
            self.viewer.restart()
        seen: set[Hashable] = set()
        for split, portions in self.splits.items():
            for portion in portions:
                before = (tally.lines_read, sum(tally.quarantined.values()))
                counts, times = tally.of_entry(split, portion.name), portion.times()
                for one in portion.sample(self._fresh(portion, split, threshold, tally, seen, problems)):
                    number = next(times)
                    self._use(one, min(number, 1) if one.target == "eval" else number, tally, store, counts)
                    seen.update({one.mark} if number and one.mark is not None else ())
                counts["lines"] += tally.lines_read - before[0]
                counts["quarantined"] += sum(tally.quarantined.values()) - before[1]
                counts["not_drawn"] = counts.pop("fresh", 0) - counts.pop("used", 0)
        if problems:
            raise DataError(problems)
        return tally

    def _fresh(
        self,
        portion: Portion,
        split: str,
        threshold: int,
        tally: Tally,
        seen: set[Hashable],
        problems: list[str],
    ) -> Iterator[_Good]:
        """Good examples of an entry that data.deduplicate leaves. seen: marks of examples of other entries."""
        own, counts = set[Hashable](), tally.of_entry(split, portion.name)
        for source in portion.sources:
            try:
                for place, example, beside in self._examples(source, tally):
                    target = "eval" if example.prompt_hash < threshold else split
                    keys = Store.keys(example)
                    by = {"none": None, "prompt": (target, example.prompt_hash), "pair": (target, keys, beside.label)}
                    mark = by[self.settings.deduplicate]
                    if mark is not None and (mark in seen or mark in own):
                        counts["deduplicated"] += 1
                        continue
                    own.update({mark} if mark is not None else ())
                    counts["fresh"] += 1
                    yield _Good(
                        target,
                        place,
                        example,
                        keys,
                        beside.label,
                        beside.factor,
                        mark,
                        beside if self.viewer is not None else None,
                    )
            except DataError as error:
                problems += error.problems

    def _use(self, one: _Good, number: int, tally: Tally, store: Store | None, counts: Counter[str]) -> None:
        """Write an example `number` times and count it; a repeat is the same rows once more."""
        counts["used"] += number > 0
        for turn in range(number):
            counts[one.target] += tally.examples_per_line
            counts["repeated"] += turn > 0
            tally.desirable[one.target] += one.label
            if store is not None:
                for part, part_keys, side in self._parts(one.example, one.keys, one.label):
                    store.add(one.target, part, part_keys, one.place, side, one.factor)
            if turn:
                tally.repeat(one.target)
            else:
                if self.viewer is not None and one.beside is not None:
                    self.viewer.look(
                        one.target, one.place, self.tokenizer, one.beside.example, one.beside.text, one.example
                    )
                lengths = (len(one.example.prompt_ids), max(map(len, one.example.answer_ids)))
                tally.use(one.target, one.example.prompt_hash, lengths, one.keys)

    def _parts(
        self, example: Encoded, keys: tuple[str, ...], label: bool
    ) -> list[tuple[Encoded, tuple[str, ...], bool]]:
        """What becomes of one line: itself, or its two answers as a desirable and an undesirable one."""
        if not self.is_unpaired:
            return [(example, keys, label)]
        answers = zip(example.answer_ids, example.masks, keys, (True, False), strict=True)
        return [
            (replace(example, answer_ids=[ids], answer_masks=[mask]), (key,), side) for ids, mask, key, side in answers
        ]

    def _examples(self, source: Source, tally: Tally) -> Iterator[tuple[str, Encoded, _Beside]]:
        """Good examples of one source with place and what belongs to them; everything else is counted in the tally."""
        rows = source.rows()
        seen = taken(rows, _DETECT_ROWS)
        while len(seen) < _DETECT_LINES and not any(line.row is not None for line in seen):
            more = taken(rows, _DETECT_ROWS)
            if not more:
                break
            seen += more
        if not seen:
            self.observer(Note("warning", f"{source.name} holds no rows"))
        good = [line.row for line in seen if line.row is not None]
        reader = RowReader(
            source.name,
            self.settings,
            good,
            num_answers=self.num_answers,
            needs=self.objective.data,
            is_unpaired=self.is_unpaired,
        )
        layout = reader.layout
        tally.formats[source.name] = described = _described(layout, reader.first)
        title = f", {layout.title}" if layout is not None else f"; none of {', '.join(FORMATS)} fits"
        self.observer(Note("info", f"{source.name}: format {described}{title}"))
        self._check_labels(source, layout)
        tally.uses.append(reader.use)
        yield from encode_lines(
            source.name,
            itertools.chain(seen, rows),
            partial(self._text_of, reader),
            self.tokenizer,
            tally,
            self.beyond,
            max_length=self.settings.max_length,
            overlong=self.settings.overlong,
            observer=self.observer,
        )
        if reader.others:
            others = ", ".join(f"{name} ({count:,} rows)" for name, count in reader.others.items())
            tally.formats[source.name] = f"{described}; also {others}"

    def _check_labels(self, source: Source, layout: Format | None) -> None:
        """Raise DataError for a file of pairs where labels are needed, or of labels where pairs are to be split."""
        if self.objective.data != "labels" or layout is None:
            return
        if layout.data == "pairs" and not self.is_unpaired:
            raise DataError(
                f"{source.name} holds pairs ({layout.title}); objective {self.objective.name} reads rows of prompt, completion "
                "and label, and would have had none. Set data.unpair: true to read each pair as a desirable and an "
                "undesirable answer."
            )
        if layout.data == "labels" and self.is_unpaired:
            raise DataError(
                f"{source.name} holds labelled answers already; data.unpair would have split pairs, of which it has none. "
                "Leave data.unpair out, or name files of pairs."
            )

    def _text_of(self, reader: RowReader, place: str, row: Row) -> tuple[Rendered, _Beside]:
        """Text of a row and what belongs to it. Raises DataError when the whole file cannot be written down."""
        if self.settings.confidence_column is not None and self.settings.min_confidence is not None:
            confidence(row, self.settings.confidence_column, self.settings.min_confidence)
        column = self.settings.weight_column
        factor = 1.0 if column is None else weight(row, column)
        example, layout = reader.read(place, row)
        if self.objective.data == "labels" and layout.data == "answers":
            raise BadRow("missing_field", "label is missing")
        if self.objective.data == "answers" and not example.label:
            raise BadRow("undesirable", "label is false")
        if example.tokens is not None and example.tokens.tokenizer != self.tokenizer.ids_digest:
            raise other_tokenizer(example.tokens, self.tokenizer, place)
        if example.is_conversation and example.plain is None and not self.tokenizer.has_template:
            raise no_template(self.tokenizer, reader.use.source)
        text = render(example, self.tokenizer, self.settings.control_tokens)
        return text, _Beside(example.label, factor, example, text)


@dataclass(frozen=True)
class _Good:
    """A good line. target: the split that it goes to. mark: what data.deduplicate compares, None for nothing. beside: for a
    viewer, None without one."""

    target: str
    place: str
    example: Encoded
    keys: tuple[str, ...]
    label: bool
    factor: float
    mark: Hashable
    beside: _Beside | None = None


def _as_report(found: dict[str, Any] | None) -> DataReport | None:
    """The report of an earlier preparation; None also for one of a version whose reports had other fields."""
    try:
        return None if found is None else DataReport.from_json(found)
    except (TypeError, AssertionError):
        return None


def _described(layout: Format | None, rows: Sequence[Row]) -> str:
    if layout is None:
        return "unknown"
    if layout.name not in ("standard", "conversational"):
        return layout.name
    explicit = sum(row.get("prompt") is not None for row in rows) * 2 > len(rows)
    return f"{layout.name}, {'explicit' if explicit else 'implicit'} prompt"
