"""The example of the Python front door runs as it stands, its answers stop nothing, and its output has no control codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.from_python import main
from raydpo.runtime import session
from tests.pipelines.toy import make_toy


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    toy = make_toy(tmp_path)
    monkeypatch.chdir(tmp_path)
    with session(kind="local", local_cpus=4):
        main(str(toy.model), "runs/sorted")
    told = capsys.readouterr().out
    assert "<dpo in runs/sorted: " in told
    assert "before" in told
    assert "train: " in told, "progress, as lines, because this is no terminal"
    assert "\x1b" not in told
    assert (tmp_path / "runs/sorted/checkpoints").is_dir()
    assert len(list((tmp_path / "runs/inputs").glob("*.arrow"))) == 2
