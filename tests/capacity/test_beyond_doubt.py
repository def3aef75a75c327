"""A training that cannot fit is refused before anything is started; what may fit is not."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from raydpo import cli
from raydpo.capacity import beyond_doubt
from raydpo.capacity.beyond_doubt import check_memory
from raydpo.capacity.machine_room import Room, room_here
from raydpo.errors import ResourceError
from raydpo.rundir.workspace import find_workspace
from tests.pipelines.toy import Notes, Toy, config, make_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"))


def count(toy: Toy) -> int:
    from raydpo.capacity.skeleton import skeleton_of

    return skeleton_of(toy.model).base


def asked(toy: Toy, tmp_path: Path, room: Room, changes: dict[str, Any]) -> list[str]:
    notes = Notes()
    workspace = find_workspace(config(toy, tmp_path / "run", changes), "train")
    check_memory(workspace, notes, room)
    return notes.warning


def gpu(num_bytes: float) -> Room:
    return Room(round(num_bytes), 1, 10**12)


GPU = {"train.gpus_per_worker": 1, "model.dtype": "float32"}


@pytest.mark.parametrize(
    ("changes", "bytes_each", "advice"),
    [
        ({"train.zero_stage": 0}, 12, "train.zero_stage: 2 with train.offload_optimizer: true"),
        ({"train.zero_stage": 2}, 16, "train.zero_stage: 2 with train.offload_optimizer: true"),
        ({"train.zero_stage": 2, "train.num_workers": 4}, 4 + 12 / 4, "train.zero_stage: 3"),
    ],
    ids=["stage 0", "stage 2", "four ranks"],
)
def test_weights_and_optimizer_state_that_are_more_than_a_gpu_are_refused_with_the_smallest_change(
    changes: dict[str, Any], bytes_each: float, advice: str, toy: Toy, tmp_path: Path
) -> None:
    needed = bytes_each * count(toy)
    with pytest.raises(ResourceError, match=re.escape(f"Smallest change that helps: {advice}.")):
        asked(toy, tmp_path, gpu(needed - 1), GPU | changes)
    assert asked(toy, tmp_path, gpu(needed + 1), GPU | changes) != []  # gradients will not fit: said, not refused
    assert asked(toy, tmp_path, gpu(10 * needed), GPU | changes) == []


def test_an_adapter_is_what_helps_where_even_shards_are_too_much_for_the_host(toy: Toy, tmp_path: Path) -> None:
    room = Room(None, 0, 6 * count(toy))
    changes = {"train.zero_stage": 2}
    with pytest.raises(ResourceError, match=re.escape("of this machine is")) as refused:
        asked(toy, tmp_path, room, changes)
    assert "train.lora: {rank: 16}" in str(refused.value) or "No stage, offload or adapter" in str(refused.value)
    assert asked(toy, tmp_path, room, changes | {"train.lora": {"rank": 1}}) == []


def test_offload_is_taken_off_the_gpu(toy: Toy, tmp_path: Path) -> None:
    changes = GPU | {"train.zero_stage": 2, "train.offload_optimizer": True}
    assert asked(toy, tmp_path, gpu(4 * count(toy) + 1), changes) == []
    with pytest.raises(ResourceError, match=r"a rank holds weights [\d.]+ kB, "):
        asked(toy, tmp_path, gpu(4 * count(toy) - 1), changes)


def test_offload_is_no_advice_where_main_memory_has_no_room_for_it(toy: Toy, tmp_path: Path) -> None:
    changes, needed = GPU | {"train.zero_stage": 2}, 16 * count(toy)
    for host_bytes, advice in (
        (12 * count(toy), "train.zero_stage: 2 with train.offload_optimizer: true"),
        (12 * count(toy) - 1, "train.num_workers: 2 with train.zero_stage: 3"),
    ):
        with pytest.raises(ResourceError, match=re.escape(f"Smallest change that helps: {advice}.")):
            asked(toy, tmp_path, Room(needed - 1, 1, host_bytes), changes)


def test_a_cluster_whose_memory_is_not_known_is_not_judged(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(beyond_doubt, "room_here", lambda: Room(1, 1, 1))
    check_memory(find_workspace(config(toy, tmp_path / "run", GPU | {"run.runtime": "ray"}), "train"), Notes())


def test_train_ends_with_exit_code_2_before_it_reads_data(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(beyond_doubt, "room_here", lambda: Room(None, 0, 1000))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config(toy, tmp_path / "run").model_dump(mode="json", exclude_unset=True)))
    assert cli.main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert "optimizer state" in said
    assert "1.0 kB" in said
    assert not (tmp_path / "run" / "data").exists()


def test_this_machine_has_main_memory() -> None:
    assert room_here().host_bytes > 10**8
