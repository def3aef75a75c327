"""A hostile input ends a command with exit code 2 and its name, or leaves rows out with their reason, at little cost.

Measured on 30 November 2026 (two CPU cores): 74 inputs took 18 CPU seconds together, the dearest 2.3 (a good run: 0.2); the
largest, three rows of 40 MB and one of 100, held 323 MiB more than the good run's 296. `pytest -s` prints the figures anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.conftest import CHATML, save_tokenizer
from tests.hostile.cases import CASES, PAIR_LINE

pytestmark = pytest.mark.slow

MOST_CPU_S = 10.0
MOST_MORE_BYTES = 500 << 20
ROOT = Path(__file__).parents[2]


class Attempts:
    """The process of attempts.py. good: what it used for a good run. costs: CPU seconds and peak bytes of each command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.costs: list[tuple[float, int, str]] = []
        model = save_tokenizer(
            folder / "model", bos=None, eos="<|im_end|>", template=CHATML, specials=["<|im_start|>"], writes_bos=False
        )
        (model / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 420, "eos_token_id": 0}))
        (model / "model.safetensors").write_bytes(b"")
        talk = [{"role": "user", "content": "hello"}]
        said = {
            f"{side}": [{"role": "assistant", "content": text}] for side, text in (("chosen", "a"), ("rejected", "b"))
        }
        lines = [PAIR_LINE.decode().replace("sky", f"sky {index}") for index in range(20)]
        (folder / "pairs.jsonl").write_text("\n".join([*lines, json.dumps({"prompt": talk, **said})]) + "\n")
        settings: dict[str, Any] = {
            "run": {"dir": "run"},
            "model": {"path": "model"},
            "data": {"train": ["pairs.jsonl"], "max_length": 256},
        }
        (folder / "run.yaml").write_text(json.dumps(settings))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.attempts"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.good = self.of(folder, ["check", "run.yaml"])

    def of(self, folder: Path, words: list[str]) -> dict[str, Any]:
        """What a command did: code, said, cpu_s, rss_bytes."""
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(json.dumps({"folder": str(folder), "words": words}) + "\n")
        self.child.stdin.flush()
        found: dict[str, Any] = json.loads(self.child.stdout.readline())
        self.costs.append((found["cpu_s"], found["rss_bytes"], " ".join(words)[-60:]))
        return found

    def told(self) -> str:
        """What all inputs cost, beside the good run, which is the first."""
        (good_s, good_bytes, _), *costs = self.costs
        if not costs:
            return "nothing but the good run"
        dearest, largest = max(costs), max(costs, key=lambda cost: cost[1])
        return (
            f"{len(costs)} inputs took {sum(cost[0] for cost in costs):.0f} CPU seconds in all, at most {dearest[0]:.1f} "
            f"({dearest[2]}; the good run {good_s:.1f}); at most {(largest[1] - good_bytes) / 2**20:.0f} MiB above the good "
            f"run's {good_bytes / 2**20:.0f} ({largest[2]})"
        )


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attempts]:
    found = Attempts(tmp_path_factory.mktemp("good"))
    yield found
    print(found.told())
    found.child.kill()
    found.child.communicate()


def test_the_good_run_is_good(attempts: Attempts) -> None:
    assert attempts.good["code"] == 0, attempts.good["said"]


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_input_is_named_and_costs_little(
    name: str, attempts: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    shutil.copytree(attempts.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    words = case.make(tmp_path)
    words = words if words[:1] == ["check"] else ["check", "run.yaml", *words]
    found = attempts.of(tmp_path, words)
    said = found["said"]
    assert found["code"] == (2 if case.quarantined is None else 0), said[-3000:]
    assert "Traceback" not in said
    assert re.search(case.says, said), said[-3000:]
    if case.quarantined is not None:
        assert case.quarantined in said
    assert found["cpu_s"] < MOST_CPU_S
    assert found["rss_bytes"] - attempts.good["rss_bytes"] < MOST_MORE_BYTES
    assert not (tmp_path / "HACKED").exists()
