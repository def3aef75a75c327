"""From data.train and data.eval to token shards: every line is used or quarantined with its reason.

What comes in: the config and a tokenizer. What goes out: `<folder>/train-*.arrow`, `eval-*.arrow`, a manifest, and
`quarantine.jsonl` next to the folder; a `DataReport`.
Decision: rows of large sources are encoded in committed parts first, by any number of workers; one pass over all rows in
the order of the files then decides what depends on other rows, a batch of columns at a time. Which prompts an `eval_fraction`
takes is a property of the prompt alone (its hash), so that adding rows moves no other row between the splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from raydpo.artifacts import digest, durable, settle
from raydpo.config import Config
from raydpo.config.mixture_entry import entries_of
from raydpo.config.outside import is_outside, source_sha256
from raydpo.data.bad_rows import BadRow
from raydpo.data.chat_template import MOST_BEYOND, beyond_bounds
from raydpo.data.embedding_rows import Beyond, Embedding
from raydpo.data.ends_said import ends_said
from raydpo.data.findings import refuse, tell
from raydpo.data.formats import FORMATS, Format
from raydpo.data.merge import RowMerge
from raydpo.data.messages import Row
from raydpo.data.mixture import Portion, find_mixture
from raydpo.data.parts import MakeParts, PartFolder, PartSpec, here, portable
from raydpo.data.report import DataReport, Tally
from raydpo.data.row_batch import RowBatch, columns_of
from raydpo.data.row_encoder import RowEncoder
from raydpo.data.row_ends import decided
from raydpo.data.row_ranges import cut, is_small
from raydpo.data.row_reader import RowReader
from raydpo.data.shown_rows import RowViewer
from raydpo.data.sources import Source
from raydpo.data.store import Store
from raydpo.data.template import open_tokenizer, read_template
from raydpo.errors import DataError
from raydpo.schema.events import Advanced, Note, Observer, StageDone, StageStarted, ignore

VERSION = "data-6"
"""Version of reading and encoding: raise it when the same input may give other ids."""

_HASHES = 1 << 64
_BATCH_ROWS = 512


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
    make_parts: MakeParts | None = None,
) -> DataReport:
    """Read, check and encode all data of a run. write=False does everything but writing.

    embedding: what the ids have to fit into; None: unknown. model_folders: asked in order for the model's end tokens; none:
    the tokenizer's folder is. viewer: is shown every used row. make_parts: encodes parts of large sources; None: this
    process does. A finished preparation in `folder` is taken as it is when files, data section, tokenizer and number of
    answers are the same. Raises DataError with all problems: missing files, no chat template, too many bad lines, tokens
    beyond the embedding.
    """
    return _Preparation(
        config, tokenizer_path, Path(folder), write, observer, embedding, model_folders, viewer, make_parts
    ).run()


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
        make_parts: MakeParts | None,
    ) -> None:
        self.config, self.settings = config, config.data
        self.objective, self.tokenizer_path, self.make = config.objective.row, tokenizer_path, make_parts
        self.parts: PartFolder | None = None
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
        self.encoder = RowEncoder(config, self.tokenizer, self.beyond, observer)
        self.is_unpaired, self.num_answers = self.encoder.is_unpaired, self.encoder.num_answers

    def run(self) -> DataReport:
        self.observer(StageStarted("data", None, "lines"))
        digest = self._input_digest()
        store = Store(self.folder, digest) if self.write else None
        if store is not None and (earlier := _as_report(store.finished())) is not None:
            PartFolder(self.folder, digest).drop()  # of an attempt that was killed behind its commit
            report = replace(earlier, reused=True)
            self.observer(StageDone("data", f"{report.pairs_used:,} examples, prepared earlier from the same input"))
            return report
        if store is not None and store.damage:
            text = f"the data that was prepared in {self.folder} is not used: {store.damage}. It is prepared again"
            self.observer(Note("warning", text))
        if store is None:
            return self._prepared(store)
        self.parts = PartFolder(self.folder, digest)
        with store.dropped_on_error():
            try:
                self._make_parts(self.parts)
                report = self._prepared(store)
            except DataError:  # they would be of no use: with another config they are others
                self.parts.drop()
                raise
        self.parts.drop()
        return report

    def _prepared(self, store: Store | None) -> DataReport:
        ends = ends_said(self.tokenizer)
        for note in filter(None, [*self.mixture.notes, ends.text, ends.added]):
            self.observer(Note("info", note))
        threshold = self._threshold()
        tally = self._pass(store, threshold)
        self.beyond.refuse()
        if threshold and not tally.pairs["eval"] and len(prompts := tally.prompt_hashes()) > 1:
            # So few prompts that the share came out empty: the one with the smallest hash is held out.
            tally = self._pass(store, int(prompts[0]) + 1)
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
                "settings": self.settings.model_dump(mode="json", exclude={"num_workers"}),
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
        merge = RowMerge(
            tally,
            store,
            self.tokenizer,
            by=self.settings.deduplicate,
            threshold=threshold,
            is_unpaired=self.is_unpaired,
            viewer=self.viewer,
        )
        for split, portions in self.splits.items():
            for portion in portions:
                before = (tally.lines_read, sum(tally.quarantined.values()))
                merge.use(portion, split, self._batches(portion, tally, problems))
                counts = tally.of_entry(split, portion.name)
                counts["lines"] += tally.lines_read - before[0]
                counts["quarantined"] += sum(tally.quarantined.values()) - before[1]
        if problems:
            raise DataError(problems)
        return tally

    def _batches(self, portion: Portion, tally: Tally, problems: list[str]) -> Iterator[RowBatch]:
        """Good rows of an entry; everything else is counted in the tally."""
        for source in portion.sources:
            try:
                yield from self._rows(source, tally)
            except DataError as error:
                problems += error.problems

    def _rows(self, source: Source, tally: Tally) -> Iterator[RowBatch]:
        """Good rows of one source."""
        seen, lines = self.encoder.open(source)
        if not seen:
            self.observer(Note("warning", f"{source.name} holds no rows"))
        reader = self.encoder.reader(source.name, seen)
        layout = reader.layout
        tally.formats[source.name] = described = _described(layout, reader.first)
        title = f", {layout.title}" if layout is not None else f"; none of {', '.join(FORMATS)} fits"
        self.observer(Note("info", f"{source.name}: format {described}{title}"))
        self.encoder.check_labels(source.name, layout)
        tally.uses.append(reader.use)
        works = None if self.parts is None else self.parts.of(source)
        if self.parts is None or works is None:
            rows = self.encoder.rows(reader, lines, tally)
            while batch := list(islice(rows, _BATCH_ROWS)):
                yield RowBatch(columns_of(batch), batch if self.viewer is not None else ())
        else:
            for work in works:
                counts, batches = self.parts.rows(work)
                self._absorb(counts, reader, tally)
                yield from batches
        if reader.others:
            others = ", ".join(f"{name} ({count:,} rows)" for name, count in reader.others.items())
            tally.formats[source.name] = f"{described}; also {others}"

    def _absorb(self, counts: Mapping[str, Any], reader: RowReader, tally: Tally) -> None:
        """Take in what was counted for a part. Raises DataError where its template took too much once too often."""
        tally.absorb(counts)
        reader.use.absorb(counts["use"])
        reader.others.update(counts["others"])
        self.beyond.absorb(counts["beyond"])
        self.tokenizer.num_beyond += counts["num_beyond"]
        if self.tokenizer.num_beyond > MOST_BEYOND:
            said = tally.samples["template_limits"][-1].rpartition(": ")[2]
            raise beyond_bounds(self.tokenizer, BadRow("template_limits", said))

    def _make_parts(self, parts: PartFolder) -> None:
        """Have every range of every large source encoded and committed, but for those that an earlier attempt did."""
        sources = [one for portions in self.splits.values() for portion in portions for one in portion.sources]
        large = [source for source in sources if not is_small(source)]
        for source in large:
            with suppress(DataError):  # it is raised again when the source is read, with those of others
                reader = self.encoder.reader(source.name, self.encoder.open(source)[0])
                self.encoder.check_labels(source.name, reader.layout)
                parts.plan(source, cut(source))
        missing = parts.missing()
        spec = PartSpec(self.config, self.tokenizer_path, self.tokenizer.ends, self.beyond.embedding, parts.folder)
        if missing:
            self.observer(StageStarted("data", parts.num_lines, "lines"))
            done = parts.num_lines - sum(work.rows.num_lines for work in missing)
            if done:
                self.observer(Note("info", f"data: {done:,} lines were encoded by an earlier attempt"))
            made = here(spec, missing, self.tokenizer) if self.make is None else self.make(portable(spec), missing)
            for index, result in made:
                parts.done(missing[index], result)
                settle(parts.folder, is_urgent=False)
                done += result.num_lines
                self.observer(Advanced("data", done))
            if len(large) < len(sources):  # these are counted as they are read
                self.observer(StageStarted("data", None, "lines"))


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
