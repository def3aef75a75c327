"""Files of a training state, without an engine: what they hold, what they are refused for, and what damage does."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from raydpo.train.deepspeed_engine import Snapshot
from raydpo.train.state_files import KINDS, Fragment, SavedState, shares, state_files, write_state

SHAPES = {"embed.weight": (5, 4), "layer:0|bias": (3,), "norm": ()}
"""20, 3 and 1 elements."""
NUM_FLIPS = 500


def whole(seed: int = 0, step: int = 7) -> list[Fragment]:
    """All parameters, with values that differ everywhere."""
    draw = torch.Generator().manual_seed(seed)
    return [
        Fragment(
            name,
            shape,
            0,
            torch.tensor(float(step)),
            {kind: torch.randn(torch.Size(shape).numel(), generator=draw) for kind in KINDS},
        )
        for name, shape in SHAPES.items()
    ]


def empty(fragments: Sequence[Fragment]) -> list[Fragment]:
    return [
        Fragment(f.name, f.shape, f.start, torch.zeros(()), {kind: torch.zeros(f.num_elements) for kind in KINDS})
        for f in fragments
    ]


def write(folder: Path, num_ranks: int, fragments: Sequence[Fragment]) -> Path:
    for rank in range(num_ranks):
        write_state(folder, list(shares(fragments, rank, num_ranks)), rank, num_ranks)
    return folder


def problems(folder: Path, wanted: dict[str, tuple[int, ...]] | None = None) -> list[str]:
    saved = SavedState(folder)
    return saved.problems or saved.misfits(SHAPES if wanted is None else wanted)


@pytest.mark.parametrize("num_then", [1, 2, 3, 40], ids=lambda n: f"{n} ranks then")
@pytest.mark.parametrize("num_now", [1, 2, 3, 40], ids=lambda n: f"{n} now")
def test_any_number_of_ranks_reads_what_any_other_wrote(tmp_path: Path, num_then: int, num_now: int) -> None:
    """More ranks than elements too: then some hold nothing."""
    state = whole()
    saved = SavedState(write(tmp_path, num_then, state))
    assert saved.problems == saved.misfits(SHAPES) == []
    assert saved.steps == dict.fromkeys(SHAPES, 7)
    num_read = 0
    for rank in range(num_now):
        wanted = list(shares(state, rank, num_now))
        found = empty(wanted)
        assert saved.fill(found) == []
        num_read += sum(fragment.num_elements for fragment in found)
        for one, other in zip(found, wanted, strict=True):
            assert all(torch.equal(one.values[kind], other.values[kind]) for kind in KINDS)
    assert num_read == 24


def test_a_file_is_plain_safetensors_and_hashed_while_it_is_written(tmp_path: Path) -> None:
    state = whole()
    written = write_state(tmp_path, state, 0, 1)
    data = (tmp_path / written.name).read_bytes()
    assert (written.bytes, written.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    with safe_open(tmp_path / written.name, framework="pt") as file:
        assert sorted(file.keys()) == sorted(f"{kind}:0:{name}" for kind in KINDS for name in SHAPES)
        assert torch.equal(file.get_tensor("exp_avg_sq:0:embed.weight"), state[0].values["exp_avg_sq"])
        assert json.loads(file.metadata()["parameters"])["layer:0|bias"] == {"shape": [3], "step": 7}


def test_a_snapshot_stays_as_it_was_and_may_be_written_in_a_thread(tmp_path: Path) -> None:
    state = whole()
    snapshot = Snapshot([fragment.copied() for fragment in state], 0, 1)
    for fragment in state:
        fragment.values["master"].add_(1)
        fragment.step.add_(1)
    thread = threading.Thread(target=snapshot.write, args=(tmp_path,))
    thread.start()
    thread.join()
    saved, found = SavedState(tmp_path), empty(state)
    assert saved.fill(found) == []
    assert saved.steps["norm"] == 7
    assert all(
        torch.equal(one.values["master"], other.values["master"]) for one, other in zip(found, whole(), strict=True)
    )


def changed(number: int, change: Callable[[Fragment], Fragment]) -> list[Fragment]:
    return [change(fragment) if i == number else fragment for i, fragment in enumerate(whole())]


def with_values(fragment: Fragment, cut: Callable[[torch.Tensor], torch.Tensor], *kinds: str) -> Fragment:
    values = {kind: cut(value) if kind in kinds else value for kind, value in fragment.values.items()}
    return Fragment(fragment.name, fragment.shape, fragment.start, fragment.step, values)


def test_a_hole_is_named_with_its_elements(tmp_path: Path) -> None:
    state = whole()
    first, second = state[0].narrowed(0, 8), state[0].narrowed(11, 20)
    write_state(tmp_path, [first, second, *state[1:]], 0, 1)
    (said,) = problems(tmp_path)
    assert said.count("elements 8 to 11 are missing") == 3
    for kind in KINDS:
        assert f"embed.weight, {kind}: " in said


def test_what_is_missing_at_the_end_of_one_moment_is_named(tmp_path: Path) -> None:
    write_state(tmp_path, changed(0, lambda f: with_values(f, lambda v: v[:15], "exp_avg")), 0, 1)
    (said,) = problems(tmp_path)
    assert "embed.weight, exp_avg: elements 15 to 20 are missing" in said
    assert "master" not in said


@pytest.mark.parametrize("same", [True, False], ids=["equal values", "other values"])
def test_elements_that_are_there_twice_are_refused(tmp_path: Path, same: bool) -> None:
    state = whole()
    other = state[0] if same else whole(seed=1)[0]
    write_state(tmp_path, state, 0, 2)
    write_state(tmp_path, [other.narrowed(4, 6)], 1, 2)
    (said,) = problems(tmp_path)
    assert "embed.weight, master: elements 4 to 20 are there twice" in said
    assert "norm" not in said


def test_more_than_a_parameter_has_is_refused(tmp_path: Path) -> None:
    write_state(tmp_path, changed(1, lambda f: with_values(f, lambda v: torch.cat([v, v]), *KINDS)), 0, 1)
    assert "layer:0|bias, exp_avg: elements 3 to 6 are there twice" in problems(tmp_path)[0]


def test_other_shapes_and_names_are_said_at_once(tmp_path: Path) -> None:
    write(tmp_path, 2, whole())
    wanted = {"embed.weight": (4, 5), "layer:0|bias": (3,), "head": (2,)}
    lacks, extra, shapes = problems(tmp_path, wanted)
    assert lacks.endswith("lacks head.")
    assert extra.endswith("holds what this run does not train: norm.")
    assert "embed.weight (5, 4) then, (4, 5) now" in shapes


def test_many_names_are_counted(tmp_path: Path) -> None:
    write(tmp_path, 1, whole())
    (lacks,) = problems(tmp_path, SHAPES | {f"layer{i}": (1,) for i in range(9)})
    assert lacks.endswith("lacks layer0, layer1, layer2, layer3, layer4 and 4 more.")


def test_steps_that_differ_are_refused(tmp_path: Path) -> None:
    write_state(tmp_path, [*whole()[:2], whole(step=3)[2]], 0, 1)
    assert "Adam's steps differ between parameters: 3, 7." in problems(tmp_path)[0]


def test_a_lacking_file_or_one_of_another_save_is_named(tmp_path: Path) -> None:
    write(tmp_path, 3, whole())
    (tmp_path / "rank-00001.safetensors").rename(tmp_path / "moved")
    assert "files of ranks [0, 2], written by 3 ranks" in problems(tmp_path)[0]
    write_state(tmp_path, list(shares(whole(step=8), 1, 3)), 1, 3)
    assert "embed.weight is not that of the other files" in problems(tmp_path)[0]
    assert "holds the files of ranks [], written by no ranks" in problems(tmp_path / "nothing")[0]


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


TOLD = {"format": "raydpo training state 1", "rank": "0", "num_ranks": "1"}
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
NORM = {"parameters": '{"norm": {"shape": [], "step": 1}}'}
HOSTILE = {
    "empty": b"",
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "no metadata": raw({"x": ONE}, bytes(4)),
    "another format": raw({"__metadata__": {**TOLD, "format": "pt"}}),
    "no parameters": raw({"__metadata__": TOLD}),
    "deep": raw({"__metadata__": {**TOLD, "parameters": "[" * 100_000}}),
    "parameters are a list": raw({"__metadata__": {**TOLD, "parameters": "[1]"}}),
    "a step that is no number": raw({"__metadata__": {**TOLD, "parameters": '{"a": {"shape": [1], "step": "1"}}'}}),
    "a shape below 0": raw({"__metadata__": {**TOLD, "parameters": '{"a": {"shape": [-1], "step": 1}}'}}),
    "ranks without end": raw({"__metadata__": {**TOLD, **NORM, "num_ranks": "9" * 30}}),
    "a billion ranks": raw({"__metadata__": {**TOLD, **NORM, "num_ranks": "1000000000"}}),
    "a digit that is none": raw({"__metadata__": {**TOLD, **NORM, "num_ranks": "²"}}),
    "a key without a start": raw({"__metadata__": {**TOLD, **NORM}, "master": ONE}, bytes(4)),
    "a start below 0": raw({"__metadata__": {**TOLD, **NORM}, "master:-1:norm": ONE}, bytes(4)),
    "integers": raw({"__metadata__": {**TOLD, **NORM}, "master:0:norm": {**ONE, "dtype": "I32"}}, bytes(4)),
    "two dimensions": raw({"__metadata__": {**TOLD, **NORM}, "master:0:norm": {**ONE, "shape": [1, 1]}}, bytes(4)),
    "another kind": raw({"__metadata__": {**TOLD, **NORM}, "gradient:0:norm": ONE}, bytes(4)),
    "data that is not there": raw({"__metadata__": {**TOLD, **NORM}, "master:0:norm": ONE}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_state_is_a_problem_and_no_exception(tmp_path: Path, name: str) -> None:
    (tmp_path / "rank-00000.safetensors").write_bytes(HOSTILE[name])
    assert problems(tmp_path, {"norm": ()})


def test_flipped_bits_crash_nothing_and_give_no_other_names(tmp_path: Path) -> None:
    """Values have no checksum here: the manifest of the checkpoint has one."""
    draw = random.Random(5)
    data = bytearray(write(tmp_path, 1, whole()).joinpath("rank-00000.safetensors").read_bytes())
    num_refused = 0
    for _ in range(NUM_FLIPS):
        at, bit = draw.randrange(len(data) - 4 * 3 * 24), draw.randrange(8)
        data[at] ^= 1 << bit
        (tmp_path / "rank-00000.safetensors").write_bytes(data)
        saved = SavedState(tmp_path)
        found = saved.problems or saved.misfits(SHAPES)
        num_refused += bool(found)
        if not found:
            assert saved.fill(empty(whole())) == []
            assert saved.shapes == SHAPES
        data[at] ^= 1 << bit
    assert num_refused > NUM_FLIPS / 2


def test_links_and_other_names_are_not_read(tmp_path: Path) -> None:
    write(tmp_path, 1, whole())
    for name in ("rank-1.safetensors", "rank-00001.pt", "state"):
        (tmp_path / name).write_bytes(b"?")
    assert [path.name for path in state_files(tmp_path)] == ["rank-00000.safetensors"]


def test_ranks_beyond_the_digits_of_their_names_are_in_order(tmp_path: Path) -> None:
    ranks = [0, 9_999, 10_001, 99_999, 100_000, 100_001]
    for rank in reversed(ranks):
        (tmp_path / f"rank-{rank:05d}.safetensors").touch()
    assert [path.name for path in state_files(tmp_path)] == [f"rank-{rank:05d}.safetensors" for rank in ranks]
