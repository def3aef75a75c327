"""Where prepared examples go: shards of both splits, and a record of the input that they were made from.

Decision: the record (`prepared.json`) is removed before the first shard is touched and written after the last one is
durable, so that a killed preparation is never taken for a finished one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raydpo.artifacts import digest_of, durable
from raydpo.artifacts.examples import ExampleTable, ExampleWriter
from raydpo.artifacts.lease import fence, settle
from raydpo.data.encode import Encoded
from raydpo.data.mismatched import add_mismatched
from raydpo.errors import IntegrityError
from raydpo.schema.json_text import read_object
from raydpo.schema.rows import row_key

_RECORD = "prepared.json"
_SPLITS = ("train", "eval")


def taught_ends(folder: Path) -> tuple[int, ...]:
    """Tokens that the answers of the data prepared in `folder` are taught to end with; none where nothing was noted."""
    record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    return tuple(record["report"].get("end_ids", ()))


class Store:
    """The folder of one prepared data set.

    input_digest: of everything that its content depends on.
    damage: after `finished`, why a preparation that is there cannot be used; empty where none is, or one of another input.
    """

    def __init__(self, folder: Path, input_digest: str) -> None:
        self.folder, self.input_digest, self.damage = folder, input_digest, ""
        self._writers: dict[str, ExampleWriter] = {}

    @staticmethod
    def keys(example: Encoded) -> tuple[str, ...]:
        """Row keys of the answers, in order."""
        prompt = np.asarray(example.prompt_ids, dtype="<i4")
        return tuple(row_key(prompt, *row) for row in zip(example.answer_ids, example.masks, strict=True))

    def finished(self) -> dict[str, Any] | None:
        """The report of a finished preparation of the same input whose shards are intact, or None."""
        path = self.folder / _RECORD
        try:
            record = read_object(path)
            if record.pop("digest", None) != digest_of(record):  # one of a version that wrote none is not taken either
                raise IntegrityError(
                    f"{path} is damaged, or of an earlier version: its digest does not fit its content"
                )
            if record["input_digest"] != self.input_digest:
                return None
            report: dict[str, Any] = record["report"]
            for split in _SPLITS:
                number, said = len(ExampleTable.open(self.folder, split).verify()), report[f"{split}_pairs"]
                if number != said:
                    raise IntegrityError(
                        f"{self.folder} holds {number:,} examples of {split}, and {path} says {said:,}"
                    )
        except FileNotFoundError:
            return None
        except IntegrityError as error:
            self.damage = str(error)
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.damage = f"{path} cannot be read ({type(error).__name__}: {error})"
            return None
        return report

    def begin(self) -> None:
        """Forget what is there and start over."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._drop()
        self._writers = {split: ExampleWriter(self.folder, split) for split in _SPLITS}

    @contextmanager
    def dropped_on_error(self) -> Iterator[None]:
        """Around a preparation: whatever ends it early, its shards do not stay."""
        try:
            yield
        except BaseException:
            if self._writers:
                self._drop()
            raise

    def _drop(self) -> None:
        (self.folder / _RECORD).unlink(missing_ok=True)
        for split in _SPLITS:
            for leftover in (self.folder / f"{split}.json", *self.folder.glob(f"{split}-*.arrow")):
                leftover.unlink(missing_ok=True)

    def add(self, split: str, examples: pa.RecordBatch) -> None:
        """Append examples: columns of `MASKED_EXAMPLES`."""
        self._writers[split].extend(examples)

    def add_mismatched(self, max_length: int) -> None:
        """Write both splits again, each example with the answer to another prompt as its last."""
        for split in _SPLITS:
            self._writers[split].close()
            table = ExampleTable.open(self.folder, split).verify()  # stays mapped while its files are replaced
            self._writers[split] = ExampleWriter(self.folder, split)
            if len(table):
                add_mismatched(table, self._writers[split], split, max_length)

    def finish(self, report: dict[str, Any]) -> None:
        """Close both splits, then commit."""
        for split, writer in self._writers.items():
            writer.close(held_out_entries(report) if split == "eval" else ())
        fence(self.folder / _RECORD)
        body = durable.strict({"input_digest": self.input_digest, "report": report})
        durable.write_json(self.folder / _RECORD, {**body, "digest": digest_of(body)})
        settle(self.folder)


def held_out_entries(report: dict[str, Any]) -> list[tuple[str, int]]:
    """(name, held-out examples) of the entries that gave any, in the order of the split; none where only one did."""
    entries = [one for key in _SPLITS for one in report["entries"].get(key, {}).items()]
    found = [(name, counts["eval"]) for name, counts in entries if counts.get("eval")]
    return found if len(found) > 1 else []
