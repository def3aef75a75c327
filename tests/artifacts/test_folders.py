"""Committed folders: whole by their manifest, and the newest whole one is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydpo.artifacts import commit_folder, newest_valid, read_commit, verify_folder
from raydpo.errors import IntegrityError

FILES = {"weights.safetensors": bytes(range(256)) * 4, "rank/0/state": b"state", "empty": b""}
META = {"step": 7, "metrics": {"loss": 0.5}, "reason": "ä"}


def commit(final: Path) -> Path:
    staging = final.with_name(f".staging-{final.name}")
    for name, data in FILES.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_bytes(data)
    commit_folder(staging, final, META)
    assert not staging.exists()
    return final


def test_a_committed_folder_verifies_and_gives_its_meta(tmp_path: Path) -> None:
    folder = commit(tmp_path / "step-000007")
    assert verify_folder(folder) == []
    assert read_commit(folder)["meta"] == META
    assert {name: entry["bytes"] for name, entry in read_commit(folder)["files"].items()} == {
        name: len(data) for name, data in FILES.items()
    }
    (folder / "added-later").write_bytes(b"x")
    assert verify_folder(folder) == []


def test_each_kind_of_damage_is_named(tmp_path: Path) -> None:
    folder = commit(tmp_path / "step-000007")
    (folder / "rank/0/state").write_bytes(b"stat3")
    (folder / "weights.safetensors").write_bytes(FILES["weights.safetensors"][:-1])
    (folder / "empty").unlink()
    problems = verify_folder(folder)
    assert sorted(problem.split()[0] for problem in problems) == sorted(str(folder / name) for name in FILES)
    text = "\n".join(problems)
    assert "state differs from what was committed (sha256)" in text
    assert "weights.safetensors has 1023 bytes, 1024 were committed" in text
    assert "empty is missing" in text


def test_any_byte_of_a_file_or_of_the_manifest(tmp_path: Path) -> None:
    folder = commit(tmp_path / "step-000007")
    for name in ("weights.safetensors", "COMMIT.json"):
        data = (folder / name).read_bytes()
        whole = json.loads(data) if name == "COMMIT.json" else None
        for place in range(0, len(data), 5):
            changed = data[:place] + bytes([data[place] ^ 0x11]) + data[place + 1 :]
            (folder / name).write_bytes(changed)
            problems = verify_folder(folder)
            if not problems:
                assert json.loads(changed) == whole, place  # only white space may change unnoticed
                continue
            assert name in problems[0]
        (folder / name).write_bytes(data)
    assert verify_folder(folder) == []


@pytest.mark.parametrize("text", [None, "", "[]", "{}", "null", '{"files": {}, "meta": {}, "digest": "0"}'])
def test_a_folder_without_a_whole_manifest_does_not_count(tmp_path: Path, text: str | None) -> None:
    folder = commit(tmp_path / "step-000007")
    (folder / "COMMIT.json").unlink()
    if text is not None:
        (folder / "COMMIT.json").write_text(text)
    assert "COMMIT.json" in verify_folder(folder)[0]
    with pytest.raises(IntegrityError, match=r"COMMIT\.json"):
        read_commit(folder)
    assert newest_valid(tmp_path, "step-")[0] is None


def test_a_folder_is_never_committed_over_another(tmp_path: Path) -> None:
    folder = commit(tmp_path / "step-000007")
    before = (folder / "COMMIT.json").read_bytes()
    with pytest.raises(OSError, match="not empty"):
        commit(folder)
    assert (folder / "COMMIT.json").read_bytes() == before
    assert verify_folder(folder) == []


def test_newest_valid_walks_back_over_damage_and_says_so(tmp_path: Path) -> None:
    folders = [commit(tmp_path / f"step-{step:06d}") for step in (5, 10, 15, 20)]
    (tmp_path / ".staging-30").mkdir()
    (tmp_path / "step-000099").write_bytes(b"a file")
    assert newest_valid(tmp_path, "step-") == (folders[-1], [])
    (folders[3] / "COMMIT.json").unlink()
    (folders[2] / "weights.safetensors").write_bytes(FILES["weights.safetensors"][::-1])
    found, skipped = newest_valid(tmp_path, "step-")
    assert found == folders[1]
    assert [line.split(":")[0] for line in skipped] == ["step-000020", "step-000015"]
    for folder in folders[:2]:
        (folder / "empty").write_bytes(b"no longer")
    found, skipped = newest_valid(tmp_path, "step-")
    assert found is None
    assert len(skipped) == 4


def test_newest_means_the_highest_number_however_many_digits(tmp_path: Path) -> None:
    for step in ("000009", "000010", "1000000", "999999"):
        commit(tmp_path / f"step-{step}")
    assert newest_valid(tmp_path, "step-") == (tmp_path / "step-1000000", [])


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert newest_valid(tmp_path, "step-") == (None, [])
    assert newest_valid(tmp_path / "not-there", "step-") == (None, [])
