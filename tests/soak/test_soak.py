"""What the soak counts and writes: the page is that of the results, and what was made again is counted by stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.soak.killer import made_again
from tests.soak.page import PAGE, SoakResult, page, read_results


def write_told(path: Path, *stages: str) -> Path:
    path.write_text("".join(json.dumps(["advanced", stage, 1]) + "\n" for stage in stages))
    return path


def test_work_that_was_made_again_is_counted_by_stage(tmp_path: Path) -> None:
    killed = write_told(tmp_path / "killed", "reference", "train", "train", "train")
    undisturbed = write_told(tmp_path / "undisturbed", "reference", "train", "train")
    killed.write_bytes(killed.read_bytes() + b'["advanced", "tra')
    assert made_again(killed, undisturbed) == {"reference": 0, "train": 1}


@pytest.mark.skipif(not PAGE.is_file(), reason="no soak has written the page yet")
def test_the_page_is_that_of_the_results() -> None:
    assert PAGE.read_text() == page([SoakResult(**result) for result in read_results()])  # type: ignore[arg-type]


def test_what_is_not_equal_is_said() -> None:
    result = SoakResult(
        "c", "toy", "local", {"rank": 2, "node added": 1}, 1, 2, {}, {"weights": False, "pairs": True}, 9
    )
    assert "2 kills" in next(result.told())
    assert "NOT weights, pairs" in page([result])
    assert "1 ended with something that was not equal" in page([result])
