"""A push through a file: each rank writes its share, together the very weights that would be gathered; else what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train import share_jobs
from tests.train.conftest import Runs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("num_ranks", "stage", "dtype"),
    [(1, 0, "float32"), (2, 0, "float32"), (2, 2, "bfloat16"), (2, 3, "float32"), (2, 3, "bfloat16")],
)
def test_ranks_write_together_what_they_would_gather(
    runs: Runs, num_ranks: int, stage: int, dtype: str, tmp_path: Path
) -> None:
    spec = runs.spec(zero_stage=stage, dtype=dtype, export="last")
    found = runs.gangs[num_ranks].run(share_jobs.share_twice, spec, tmp_path)
    assert [each.differing for each in found] == [[]] * num_ranks
    assert not found[0].is_partial
    assert {len(each.left) for each in found} == {2}, "a file and its lock: those of the push before are gone"
    assert "model.embed_tokens.weight" in found[0].names
    written = [each.written for each in found]
    # The key is written by rank 0; every rank writes its part, and what is padded is written by none.
    assert max(written) - min(written) < 0.2 * sum(written)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_where_an_adapter_cannot_travel_alone_rank_0_writes_matrices(
    runs: Runs, num_ranks: int, stage: int, tmp_path: Path
) -> None:
    spec = runs.spec(zero_stage=stage, lora={"rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]})
    found = runs.gangs[num_ranks].run(share_jobs.share_twice, spec, tmp_path)
    assert [each.differing for each in found] == [[]] * num_ranks
    assert found[0].is_partial
    assert all("q_proj" in name or "v_proj" in name for name in found[0].names)
    assert [each.written > 0 for each in found] == [True] + [False] * (num_ranks - 1)


@pytest.mark.parametrize(
    ("num_ranks", "stage", "dtype"), [(1, 0, "float32"), (2, 2, "bfloat16"), (2, 3, "float32"), (2, 3, "bfloat16")]
)
def test_of_an_adapter_each_rank_writes_its_share_and_it_is_merged_where_it_arrives(
    runs: Runs, num_ranks: int, stage: int, dtype: str, tmp_path: Path
) -> None:
    lora = {"rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["norm"]}
    spec = runs.spec(zero_stage=stage, dtype=dtype, lora=lora)
    found = runs.gangs[num_ranks].run(share_jobs.share_twice, spec, tmp_path, spec.model.here())
    assert [each.differing for each in found] == [[]] * num_ranks
    assert found[0].is_partial
    factors = [name for name in found[0].names if name.endswith((":0", ":1"))]
    copied = [name for name in found[0].names if name not in factors]
    assert "model.norm.weight" in copied
    assert all("norm" in name for name in copied)
    assert all("q_proj" in name or "v_proj" in name for name in factors)
    assert all(each.written > 0 for each in found), "nobody writes for another, and nothing is gathered"


@pytest.mark.parametrize(
    ("lack", "num_ranks", "said"),
    [
        ("room", 1, "could not be shared with other processes of this node"),
        ("node", 2, "it is on another node than rank 0"),
        ("space", 2, "could not be written: No space left on device"),
    ],
)
def test_without_a_file_weights_go_through_the_driver_and_it_is_said(
    runs: Runs, lack: str, num_ranks: int, said: str, tmp_path: Path
) -> None:
    spec = runs.spec(zero_stage=3 if num_ranks == 2 else 0)
    found: list[Any] = runs.gangs[num_ranks].run(share_jobs.push_without, spec, tmp_path, lack)
    for events, left in found:
        assert events[0] == "PolicyProbe"
        assert events[1].startswith("Notedweights go to the generators through the driver: ")
        assert said in events[1]
        assert left == []
    assert found[0][0][2:] == ["WeightsPart"]
    if num_ranks == 2:
        assert found[1][0][2:] == ["Alive"]
