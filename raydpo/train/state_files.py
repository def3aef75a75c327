"""The training state on disk: float32 weights, Adam's moments and Adam's step by parameter name, in ranges of elements.

Comes in: fragments, what one rank holds of each parameter. Goes out: one file a rank, `rank-00000.safetensors`, and from all
of them whatever ranges somebody else wants. Decision: a file says nothing of ZeRO and no range depends on another, so that
any number of ranks and any stage reads what any other wrote; the price is that every rank reads the headers of all files.
Tensors are one-dimensional float32, named "kind:first element:parameter"; nothing that is read here can run code.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from raydpo.disk import full_disk

KINDS = ("master", "exp_avg", "exp_avg_sq")
"""Weights in float32, and both moments."""
FORMAT = "raydpo training state 1"
FILE = re.compile(r"rank-(\d{5,})\.safetensors", re.ASCII)
SHOWN = 5
"""Names in a message; of the others their number."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fragment:
    """Consecutive elements of one flattened parameter.

    name: of the parameter.
    shape: of the whole parameter.
    start: the first element.
    step: Adam's, float32 [].
    values: for each of KINDS a float32 [N].
    """

    name: str
    shape: Shape
    start: int
    step: Tensor
    values: Mapping[str, Tensor]

    @property
    def num_elements(self) -> int:
        return self.values["master"].numel()

    def narrowed(self, first: int, last: int) -> Fragment:
        """Of its own elements those from `first` up to `last`."""
        values = {kind: value[first:last] for kind, value in self.values.items()}
        return Fragment(self.name, self.shape, self.start + first, self.step, values)

    def copied(self) -> Fragment:
        """The same in CPU memory of its own."""
        values = {kind: value.to("cpu", copy=True).contiguous() for kind, value in self.values.items()}
        return Fragment(self.name, self.shape, self.start, self.step.to("cpu", copy=True), values)


@dataclass(frozen=True)
class StateFile:
    """A file as it was written. name: in its folder. bytes, sha256: of its content."""

    name: str
    bytes: int
    sha256: str


def write_state(folder: Path, fragments: Sequence[Fragment], rank: int, num_ranks: int) -> StateFile:
    """Write what one rank holds. Raises StorageError when the disk is full; then no half of a file is left.

    fragments: in CPU memory. The file is hashed while it is written, and not synced.
    """
    tensors = {f"{kind}:{each.start}:{each.name}": each.values[kind] for each in fragments for kind in KINDS}
    header, size = _header(tensors, fragments, rank, num_ranks)
    path = folder / f"rank-{rank:05d}.safetensors"
    blocks: list[Any] = [header, *(tensor.numpy() for tensor in tensors.values())]
    digest = hashlib.sha256()
    with full_disk(path, len(header) + size):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("wb") as file:
                for block in blocks:
                    file.write(block)
                    digest.update(block)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    return StateFile(path.name, len(header) + size, digest.hexdigest())


def _header(
    tensors: Mapping[str, Tensor], fragments: Sequence[Fragment], rank: int, num_ranks: int
) -> tuple[bytes, int]:
    """The header of a safetensors file, and the bytes that follow it."""
    parameters = {each.name: {"shape": each.shape, "step": int(each.step)} for each in fragments}
    told = {"format": FORMAT, "rank": str(rank), "num_ranks": str(num_ranks), "parameters": json.dumps(parameters)}
    header: dict[str, Any] = {"__metadata__": told}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, end


@dataclass(frozen=True)
class _Range:
    """Elements `start` up to `end` of a parameter: the tensor `key` of `file`."""

    start: int
    end: int
    file: Any
    key: str


class SavedState:
    """What the files of `folder` hold together. Opening reads headers only and raises nothing: see `problems`.

    problems: what is wrong with the files themselves, each a finished sentence.
    shapes, steps: by parameter name.
    """

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self.shapes: dict[str, Shape] = {}
        self.steps: dict[str, int] = {}
        self._ranges: dict[tuple[str, str], list[_Range]] = {}
        self._folder = folder
        counts: set[int] = set()
        files = state_files(folder)
        for path in files:
            try:
                counts.add(self._open(path))
            except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                self.problems.append(f"{path} cannot be read as training state ({type(error).__name__}: {error}).")
        numbers = [_rank_of(path) for path in files]
        if not self.problems and (counts != {len(numbers)} or numbers != list(range(len(numbers)))):
            said = " or ".join(map(str, sorted(counts))) or "no"
            self.problems.append(f"{folder} holds the files of ranks {numbers}, written by {said} ranks.")

    def _open(self, path: Path) -> int:
        """Take in the header of a file. Returns the number of ranks that it was written by."""
        file: Any = safe_open(str(path), framework="pt", device="cpu")
        told = file.metadata() or {}
        if told.get("format") != FORMAT:
            raise ValueError(f"its format is {told.get('format', 'not given')!r}, {FORMAT!r} is read")
        for name, facts in dict(json.loads(told["parameters"])).items():
            shape, step = tuple(map(_count, facts["shape"])), _count(facts["step"])
            if (self.shapes.setdefault(name, shape), self.steps.setdefault(name, step)) != (shape, step):
                raise ValueError(f"its shape or step of {name} is not that of the other files")
        for key in file.keys():  # noqa: SIM118 - a file is no mapping
            kind, start, name = key.split(":", 2)
            piece = file.get_slice(key)
            if kind not in KINDS or name not in self.shapes or piece.get_dtype() != "F32":
                raise ValueError(f"{key[:100]!r} is no float32 tensor of a parameter that it names")
            (length,) = piece.get_shape()
            first = _count(int(start))
            self._ranges.setdefault((name, kind), []).append(_Range(first, first + length, file, key))
        return _count(int(told["num_ranks"]))

    def misfits(self, wanted: Mapping[str, Shape]) -> list[str]:
        """Why parameters of these names and shapes cannot be filled from the files; empty when they can."""
        problems = []
        saved, here = self.shapes.keys(), wanted.keys()
        for names, what in ((here - saved, "lacks"), (saved - here, "holds what this run does not train:")):
            if names:
                problems.append(f"{self._folder} {what} {_few(sorted(names))}.")
        both = sorted(saved & here)
        if other := [f"{n} {self.shapes[n]} then, {wanted[n]} now" for n in both if self.shapes[n] != wanted[n]]:
            problems.append(f"{self._folder}: other shapes: {_few(other)}.")
        steps = sorted({self.steps[name] for name in both})
        if len(steps) > 1:  # DeepSpeed gives every parameter a gradient, so all have the step that ZeRO has for many
            problems.append(f"{self._folder}: Adam's steps differ between parameters: {_few(list(map(str, steps)))}.")
        broken = [text for name in both for kind in KINDS if (text := self._gap(name, kind))]
        return problems + ([f"{self._folder}: {_few(broken)}."] if broken else [])

    def _gap(self, name: str, kind: str) -> str:
        """Where ranges do not cover a parameter once, in words."""
        end, size = 0, math.prod(self.shapes[name])
        found = sorted((each.start, each.end) for each in self._ranges.get((name, kind), []))
        for start, stop in [*found, (size, size)]:
            if start != end:
                what = "there twice" if start < end else "missing"
                return f"{name}, {kind}: elements {min(start, end)} to {max(start, end)} are {what}"
            end = stop
        return ""

    def fill(self, fragments: Sequence[Fragment]) -> list[str]:
        """Copy what is saved into `fragments`, which fit. Returns what could not be read."""
        try:
            for fragment in fragments:
                for kind in KINDS:
                    self._fill(fragment, kind)
        except (SafetensorError, OSError, RuntimeError) as error:
            return [f"{self._folder} cannot be read ({type(error).__name__}: {error})."]
        return []

    def _fill(self, fragment: Fragment, kind: str) -> None:
        target, first = fragment.values[kind], fragment.start
        last = first + fragment.num_elements
        for each in self._ranges.get((fragment.name, kind), []):
            start, end = max(first, each.start), min(last, each.end)
            if start < end:
                piece = each.file.get_slice(each.key)[start - each.start : end - each.start]
                target[start - first : end - first].copy_(piece)


def state_files(folder: Path) -> list[Path]:
    """Files of a training state, in the order of their ranks."""
    found = [path for path in folder.glob("*") if FILE.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=_rank_of)


def _rank_of(path: Path) -> int:
    return int(path.stem.removeprefix("rank-"))


def shares(fragments: Sequence[Fragment], rank: int, num_ranks: int) -> Iterator[Fragment]:
    """This rank's part where all ranks hold the same: equal parts of all elements in a row."""
    total = sum(each.num_elements for each in fragments)
    first, last, before = total * rank // num_ranks, total * (rank + 1) // num_ranks, 0
    for each in fragments:
        start, end = max(first - before, 0), min(last - before, each.num_elements)
        if start < end:
            yield each.narrowed(start, end)
        before += each.num_elements


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:50]} is no count")
    return value


def _few(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
