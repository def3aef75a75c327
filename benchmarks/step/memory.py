"""Peak memory of one step of one side, in a process of its own: `python -m benchmarks.step.memory TASK`, a task in JSON.

On the CPU the largest resident set of the process (VmHWM), on a GPU what torch allocated at most. Decision: a process of
its own, since neither can be measured when both sides share one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.step.shapes import pairs_of
from benchmarks.step.side import Spec, load_side, no_reference, prepare_torch


def peak_bytes(side: str, spec: Spec, shape: str, num_pairs: int, model: str) -> int:
    """Start a process, take a step in it, read its peak."""
    task = json.dumps({"side": side, "spec": asdict(spec), "shape": shape, "num_pairs": num_pairs, "model": model})
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "benchmarks.step.memory", task]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} at {shape} took no step (exit {done.returncode}): {done.stderr[-2000:]}")
    return int(done.stdout.splitlines()[-1])


def _main(task: str) -> None:
    asked = json.loads(task)
    spec = Spec(**asked["spec"])
    prepare_torch(spec)
    side, pairs = load_side(asked["side"], spec), pairs_of(asked["shape"], asked["num_pairs"], asked["model"])
    side.step(side.prepare(pairs, no_reference(pairs)))
    print(torch.cuda.max_memory_allocated() if spec.device == "cuda" else _resident_peak())


def _resident_peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


if __name__ == "__main__":
    _main(sys.argv[1])
