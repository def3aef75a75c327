"""Weights from trainers to generators of one node: none through the driver or the runtime's store, and nothing left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from benchmarks.rounds_apart import TensorBytes
from raydpo.artifacts import shared_files
from raydpo.artifacts.shared_files import HEADER_BYTES, SharedFile
from raydpo.driver.generators import Generators, Policy
from raydpo.driver.train_events import Driver
from raydpo.generate.engine import EngineSpec
from raydpo.generate.greedy import greedy
from raydpo.generate.make_engine import make_engine
from raydpo.models.pretrained import load_model
from raydpo.pipelines import iterate
from raydpo.rounds.run import read_summary
from raydpo.runtime.local_processes import LocalProcesses
from raydpo.schema.samples import Score
from raydpo.schema.shared_weights import SharedWeights
from raydpo.train.shared_push import share
from tests.pipelines.rounds.toy_rounds import greedy_ids, held_out_ids, rounds_config
from tests.pipelines.toy import Notes, Toy

TWO: dict[str, Any] = {"generate.num_workers": 2, "rounds.num_rounds": 2, "rounds.prompts_per_round": 8}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, TensorBytes]:
    """What ranks say to the driver, and what is shared with actors."""
    found = {"driver": TensorBytes(), "store": TensorBytes()}
    handle, shared = Driver.handle, LocalProcesses.share

    def counted_handle(self: Driver, event: Any) -> None:
        found["driver"].dump(event)
        handle(self, event)

    def counted_share(self: LocalProcesses, value: Any) -> Any:
        found["store"].dump(value)
        return shared(self, value)

    monkeypatch.setattr(Driver, "handle", counted_handle)
    monkeypatch.setattr(LocalProcesses, "share", counted_share)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are shared, by ranks in this process."""
    place = tmp_path / "shared"
    place.mkdir()
    monkeypatch.setattr(shared_files, "folders", lambda: (place,))
    return place


def model_bytes(path: Path) -> int:
    return sum(weight.nbytes for weight in load_model(path, "float32", "auto").parameters())


@pytest.mark.slow
def test_no_byte_of_a_weight_goes_through_the_driver_or_the_store(
    toy: Toy, machine: None, counted: dict[str, TensorBytes], folder: Path
) -> None:
    notes, config = Notes(), rounds_config(toy, toy.root / "direct", TWO)
    found = list(iterate(config, observer=notes))
    assert {name: each.total for name, each in counted.items()} == {"driver": 0, "store": 0}
    held = [text.split(":")[0] for text in notes.info if "generators hold policy" in text]
    assert held == ["2 generators hold policy 1", "2 generators hold policy 2"], "compared after each push"
    ids = held_out_ids(config)
    assert [greedy_ids(each.folder) for each in found] == [greedy(each.model, ids, 8) for each in found]
    assert not [text for text in notes.info if "through the driver" in text or "read from its folder" in text]
    assert list(folder.iterdir()) == []


@pytest.fixture
def written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, int]:
    """Files that ranks in this process shared -> bytes that they wrote into each."""
    found: dict[Path, int] = {}
    write = SharedFile.write

    def counted(self: SharedFile, offset_bytes: int, data: Any) -> None:
        found[self.path] = found.get(self.path, 0) + memoryview(data).nbytes
        write(self, offset_bytes, data)

    monkeypatch.setattr(SharedFile, "write", counted)
    return found


UNTAKEN: dict[str, Any] = {
    "rounds.num_rounds": 4,
    "rounds.prompts_per_round": 8,
    "rounds.eval_prompts": [],
    "train.global_batch_pairs": 64,
}
"""One optimizer step a round."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sync_every", "versions"),
    [(100, ()), (2, (2, 4)), (None, (1, 2, 3, 4))],
    ids=["offline", "semi-online", "every round"],
)
def test_weights_that_nobody_takes_are_not_written(
    toy: Toy, machine: None, folder: Path, written: dict[Path, int], sync_every: int | None, versions: tuple[int, ...]
) -> None:
    """Of the policies that generators take each has its file, and all of its bytes once."""
    changes = {**UNTAKEN, "rounds.sync_every": sync_every}
    config, notes = rounds_config(toy, toy.root / f"untaken-{sync_every}", changes), Notes()
    found = []
    for each in iterate(config, observer=notes):
        found.append(each)
        assert list(folder.iterdir()) == []
        assert (each.folder / "probe.json").is_file()
    size = model_bytes(found[0].model)
    assert len(written) == len(versions)
    assert all(size <= num_bytes <= size + 2 * HEADER_BYTES for num_bytes in written.values())
    held = [text.split(":")[0] for text in notes.info if "generator holds policy" in text]
    assert held == [f"1 generator holds policy {version}" for version in versions]
    assert read_summary(config)["updates_in_place"].get("generate", 0) == len(versions)


@pytest.mark.slow
def test_generators_that_are_stopped_while_trainers_run_take_no_weights_and_none_are_written(
    toy: Toy, machine: None, written: dict[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As colocated ones on GPUs are, whose successors read the folder."""
    begin = Generators.__init__

    def on_gpus(self: Generators, *rest: Any) -> None:
        begin(self, *rest)
        self.shares_gpus = True

    monkeypatch.setattr(Generators, "__init__", on_gpus)
    notes, config = Notes(), rounds_config(toy, toy.root / "nobody-takes", {**UNTAKEN, "rounds.num_rounds": 2})
    assert len(list(iterate(config, observer=notes))) == 2
    assert written == {}
    held = [text.split(":")[0] for text in notes.info if "generator holds policy" in text]
    assert held == ["1 generator holds policy 1", "1 generator holds policy 2"], "compared all the same"
    assert read_summary(config)["starts"]["generate"] == 3


@pytest.mark.slow
def test_where_no_file_can_be_shared_they_go_through_both_and_it_is_said(
    toy: Toy, machine: None, counted: dict[str, TensorBytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_files, "folders", lambda: ())
    notes, config = Notes(), rounds_config(toy, toy.root / "through", {**TWO, "rounds.num_rounds": 1})
    (found,) = iterate(config, observer=notes)
    size = model_bytes(found.model)
    assert {name: each.total for name, each in counted.items()} == {"driver": size, "store": size}
    (text,) = [text for text in notes.info if "through the driver" in text]
    assert "--shm-size" in text
    assert greedy_ids(found.folder) == greedy(found.model, held_out_ids(config), 8)


@pytest.fixture
def generators(toy: Toy, machine: None) -> Iterator[tuple[Generators, Notes]]:
    """One, in this process."""
    notes, config = Notes(), rounds_config(toy, toy.root / "held")
    with closing(Generators(config, EngineSpec(str(toy.model), max_length=64), notes)) as found:
        yield found, notes


ASKED = Score((((0, 5, 6), (7, 8, 9)),))


def answer(generators: Generators) -> list[float]:
    ((_, found),) = generators.score([ASKED])
    return list(found.nats[0])


def said_by(folder: Path) -> list[float]:
    return list(make_engine(EngineSpec(str(folder))).score(ASKED.sequences)[0][0])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.slow
def test_seventy_pushes_leave_no_file_and_no_growth(
    generators: tuple[Generators, Notes], toy: Toy, folder: Path
) -> None:
    held, _ = generators
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (toy.model, toy.other)]
    expected = [said_by(path) for path in (toy.model, toy.other)]
    held.hold(Policy(0, toy.model))
    files = []
    for version in range(1, 71):
        shared = share(models[version % 2], 0, 0, 1)
        assert isinstance(shared, SharedWeights)
        held.take(shared, version)
        files.append(open_files())
        assert list(folder.iterdir()) == []
        if version in (1, 2, 70):
            held.hold(Policy(version, Path("/nowhere")))
            assert answer(held) == pytest.approx(expected[version % 2], abs=1e-5)
    assert files[5] == files[-1]
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)


@pytest.mark.slow
def test_a_generator_that_does_not_see_the_file_reads_the_folder(
    generators: tuple[Generators, Notes], toy: Toy, folder: Path
) -> None:
    held, notes = generators
    held.hold(Policy(0, toy.model))
    shared = share(AutoModelForCausalLM.from_pretrained(toy.other), 0, 0, 1)
    assert isinstance(shared, SharedWeights)
    assert held.leave(shared)
    held.take(shared, 1)
    (text,) = [text for text in notes.info if "read from its folder" in text]
    assert text.startswith(f"1 generator does not see {shared.path}, being on another node")
    held.hold(Policy(1, toy.other))
    assert answer(held) == pytest.approx(said_by(toy.other), abs=1e-5)


@pytest.mark.slow
def test_a_generator_that_is_killed_over_a_push_leaves_no_file_and_its_successor_reads_the_folder(
    toy: Toy, machine: None, folder: Path
) -> None:
    notes, config = Notes(), rounds_config(toy, toy.root / "killed", TWO)
    with closing(Generators(config, EngineSpec(str(toy.model), max_length=64), notes)) as held:
        held.hold(Policy(0, toy.model))
        shared = share(AutoModelForCausalLM.from_pretrained(toy.other), 0, 0, 1)
        assert isinstance(shared, SharedWeights)
        place = held._pool._workers[0].place
        assert place is not None
        os.kill(place.pid, signal.SIGKILL)
        held.take(shared, 1)
        assert list(folder.iterdir()) == []
        held.hold(Policy(1, toy.other))
        held._pool.start()
        answers = held._pool.tell(ASKED)
        assert len(answers) == 2
        for found in answers:
            assert list(found.nats[0]) == pytest.approx(said_by(toy.other), abs=1e-5)
