"""Committed parts of a preparation: the encoded rows of one range of a source, and what was counted while they were read.

Layout: `<run>/data/.parts-<digest of the input>/<source>-<number>.arrow`, and `.json`, written last, with hash and counts.
Comes in: ranges. Goes out: the rows in order, whoever encoded them. Decision: a part holds what depends on its rows alone;
what depends on others (duplicates, draws, splits) is decided by whoever reads the parts in order, so that the result is the
same bytes for any number of workers. Price: the tokens are written twice, and the parts are removed at the end.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from raydpo.artifacts import digest_of, durable
from raydpo.artifacts.arrow import ShardRecord, read_shard, write_shard
from raydpo.config import Config
from raydpo.data.embedding_rows import Beyond, Embedding
from raydpo.data.report import Tally
from raydpo.data.row_batch import PART, RowBatch, columns_of
from raydpo.data.row_encoder import RowEncoder
from raydpo.data.row_ends import RowEnds
from raydpo.data.row_ranges import RangeReader, RowRange
from raydpo.data.sources import Source
from raydpo.data.template import open_tokenizer
from raydpo.data.tokenizer import TextTokenizer
from raydpo.errors import DataError, IntegrityError
from raydpo.schema.json_text import read_object
from raydpo.schema.pulse import beat

PREFIX = ".parts-"


@dataclass(frozen=True)
class PartWork:
    """A range of rows to encode. name: of the part."""

    name: str
    rows: RowRange


@dataclass(frozen=True)
class PartDone:
    """num_lines: of the range. problems: why its source cannot be used; then nothing was committed."""

    num_lines: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartSpec:
    """What encodes parts.

    config, tokenizer_path, embedding: as of `prepare`.
    ends: how rows begin and end.
    folder: of the parts.
    """

    config: Config
    tokenizer_path: str
    ends: RowEnds
    embedding: Embedding | None
    folder: Path


MakeParts = Callable[[PartSpec, Sequence[PartWork]], Iterator[tuple[int, PartDone]]]
"""Gives works to makers of parts; yields (index of the work, what came out) as they finish."""


class PartMaker:
    """Encodes and commits one part after the other. tokenizer: None to open that of `spec`."""

    def __init__(self, spec: PartSpec, tokenizer: TextTokenizer | None = None) -> None:
        self._spec = spec
        if tokenizer is None:
            tokenizer = open_tokenizer(spec.tokenizer_path, spec.config.data.chat_template)
            tokenizer.ends = spec.ends
        self._tokenizer, self._ranges = tokenizer, RangeReader()
        self._source: Source | None = None

    def __call__(self, work: PartWork) -> PartDone:
        """Encode and commit. Problems of the source are returned: whoever asked raises those of all together."""
        with uncollected():
            return self._made(work)

    def _made(self, work: PartWork) -> PartDone:
        before, self._tokenizer.num_beyond = self._tokenizer.num_beyond, 0
        tally, beyond = Tally(), Beyond(self._tokenizer, self._spec.embedding)
        encoder = RowEncoder(self._spec.config, self._tokenizer, beyond, observer=lambda event: beat())
        try:
            if self._source != work.rows.source:
                self._seen = encoder.open(work.rows.source)[0]
                self._source = work.rows.source
            reader = encoder.reader(work.rows.source.name, self._seen)
            rows = list(encoder.rows(reader, self._ranges.lines(work.rows), tally))
            if tally.lines_read != work.rows.num_lines:
                raise DataError(
                    f"{work.rows.source.name} changed while it was read; nothing was prepared. Start again."
                )
        except DataError as error:
            return PartDone(work.rows.num_lines, error.problems)
        finally:
            num_beyond, self._tokenizer.num_beyond = self._tokenizer.num_beyond, before
        noted = {"use": reader.use.to_json(), "others": dict(reader.others), "beyond": beyond.to_json()}
        self._commit(work.name, columns_of(rows), {**tally.read_to_json(), **noted, "num_beyond": num_beyond})
        return PartDone(work.rows.num_lines)

    def _commit(self, name: str, rows: pa.RecordBatch, counts: Mapping[str, Any]) -> None:
        folder = self._spec.folder
        folder.mkdir(parents=True, exist_ok=True)
        record = write_shard(folder / f"{name}.arrow", pa.Table.from_batches([rows]))
        body = durable.strict({"shard": asdict(record), "counts": counts})
        durable.write_json(folder / f"{name}.json", {**body, "digest": digest_of(body)})


class PartFolder:
    """The parts of one preparation. folder: of the preparation. input_digest: of its input."""

    def __init__(self, folder: Path, input_digest: str) -> None:
        self.folder = folder.absolute() / f"{PREFIX}{input_digest[:16]}"
        self._works: dict[Source, list[PartWork]] = {}
        self._problems: dict[str, tuple[str, ...]] = {}

    def plan(self, source: Source, ranges: Sequence[RowRange]) -> None:
        """Have the rows of `source` in parts, one for each range; it is read as a whole where there is none."""
        if ranges and source not in self._works:
            number = len(self._works)
            self._works[source] = [PartWork(f"{number}-{rows.number}", rows) for rows in ranges]

    @property
    def num_lines(self) -> int:
        return sum(work.rows.num_lines for works in self._works.values() for work in works)

    def missing(self) -> list[PartWork]:
        """Works whose part is not there whole, in the order of their rows. Drops parts of other inputs."""
        for other in self.folder.parent.glob(f"{PREFIX}*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        works = [work for each in self._works.values() for work in each]
        return [work for work in works if not self._is_there(work)]

    def _is_there(self, work: PartWork) -> bool:
        try:
            self._read(work)
        except IntegrityError:
            return False
        return True

    def done(self, work: PartWork, result: PartDone) -> None:
        """Take in what came of a work."""
        if result.problems:
            self._problems[work.name] = result.problems

    def of(self, source: Source) -> list[PartWork] | None:
        """The parts of a source in order, None where it is read as a whole."""
        return self._works.get(source)

    def rows(self, work: PartWork) -> tuple[dict[str, Any], list[RowBatch]]:
        """What was counted for a part, and its rows. Raises DataError with the problems of its source."""
        if work.name in self._problems:
            raise DataError(self._problems[work.name])
        counts, table = self._read(work)
        return counts, [RowBatch(batch, is_mapped=True) for batch in table.to_batches() if len(batch)]

    def _read(self, work: PartWork) -> tuple[dict[str, Any], pa.Table]:
        path = self.folder / f"{work.name}.json"
        try:
            record = read_object(path)
            digest = record.pop("digest")
            shard, counts = ShardRecord(**record["shard"]), dict(record["counts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{path} cannot be read ({type(error).__name__})") from error
        if digest != digest_of(record) or counts["lines_read"] != work.rows.num_lines:
            raise IntegrityError(f"{path} is damaged: its digest does not fit its content")
        return counts, read_shard(self.folder / shard.name, shard, PART)

    def drop(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage collection meanwhile: the rows of a part are many objects and no garbage, and looking through them again and
    again takes a tenth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def portable(spec: PartSpec) -> PartSpec:
    """The same with paths that hold in processes with another working directory."""
    template, path = spec.config.data.chat_template, Path(spec.tokenizer_path)
    settings = spec.config.data
    if template is not None:
        settings = settings.model_copy(update={"chat_template": str(Path(template).expanduser().absolute())})
    config = spec.config.model_copy(update={"data": settings})
    return replace(spec, config=config, tokenizer_path=str(path.absolute()) if path.is_dir() else spec.tokenizer_path)


def here(spec: PartSpec, works: Sequence[PartWork], tokenizer: TextTokenizer) -> Iterator[tuple[int, PartDone]]:
    """Makes parts in this process, with a tokenizer that is open."""
    maker = PartMaker(spec, tokenizer)
    for index, work in enumerate(works):
        yield index, maker(work)
