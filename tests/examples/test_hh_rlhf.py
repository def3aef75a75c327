"""The HH example on the real files: all lines accounted for, and both stages run as its README says (on a slice)."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raydpo.cli import main
from raydpo.runtime import session

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("RAYDPO_SHARED", ROOT.parent / "shared"))
FILES = sorted((SHARED / "data/hh-rlhf").glob("*.jsonl.gz"))
EXAMPLE = ROOT / "examples/hh_rlhf"

pytestmark = pytest.mark.skipif(len(FILES) != 3, reason=f"the HH-RLHF files are not in {SHARED}/data/hh-rlhf")


def raydpo(folder, *words):
    command = [sys.executable, "-m", "raydpo", *words, "--json", "--local"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with `data/hh-rlhf` and the fresh model, where the example's commands run."""
    folder = tmp_path_factory.mktemp("hh")
    (folder / "data").mkdir()
    (folder / "data/hh-rlhf").symlink_to(FILES[0].parent)
    command = [sys.executable, str(EXAMPLE / "make_model.py"), "--data", "data/hh-rlhf", "--out", "runs/hh/fresh"]
    subprocess.run(command, cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return folder


@pytest.mark.slow
def test_every_line_of_the_three_files_is_accounted_for(workplace):
    summary = raydpo(workplace, "check", str(EXAMPLE / "dpo.yaml"), "model.path=runs/hh/fresh")
    data = summary["data"]
    assert len(data["formats"]) == 3
    assert data["lines_read"] == 6240
    assert data["pairs_used"] + sum(data["quarantined"].values()) == data["lines_read"]
    assert data["quarantined"]["identical_answers"] == 36
    assert data["eval_pairs"] > 500


@pytest.mark.slow
def test_both_stages_run_on_a_slice_and_evaluate_on_unseen_pairs(workplace, monkeypatch, capsys):
    """In this process, where both commands fork their ranks from one server."""

    def here(*words):
        assert main([*words, "--json", "--local"]) == 0, capsys.readouterr().err[-4000:]
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.chdir(workplace)
    for file in FILES:
        with gzip.open(file, "rt") as source, gzip.open(workplace / f"slice-{file.name}", "wt") as target:
            target.writelines(line for _, line in zip(range(60), source, strict=False))
    small = [f"data.train={workplace}/slice-*.jsonl.gz", "train.global_batch_pairs=16", "data.max_length=192"]
    with session(kind="local", local_cpus=4):
        sft = here("train", str(EXAMPLE / "sft.yaml"), *small)
        dpo = here("train", str(EXAMPLE / "dpo.yaml"), *small)
    shutil.rmtree(workplace / "runs/hh/sft")
    assert sft["eval"]["last"]["eval/loss"] < sft["eval"]["first"]["eval/loss"] - 0.1
    assert dpo["eval"]["first"]["eval/rewards/ties"] == 1.0
    assert dpo["eval"]["first"]["eval/rewards/accuracies"] == 0.5
    assert dpo["eval"]["first"]["eval/loss"] == pytest.approx(0.693147, abs=1e-4)
    assert dpo["eval"]["last"]["eval/rewards/ties"] < 0.5
    assert dpo["reference"]["rows"] == dpo["reference"]["rows_scored"] > 200
    assert dpo["train"]["probe"]["max_difference_nats"] < dpo["train"]["probe"]["tolerance_nats"]
    assert dpo["data"]["eval_prompts_in_train"] == 0
