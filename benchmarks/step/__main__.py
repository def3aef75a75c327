"""`python -m benchmarks.step`: raydpo and TRL side by side on the same folder, data, dtype and batch.

For each shape: the loss of both on the same pairs, executed FLOPs, interleaved timed steps and reference passes, peak
memory. Prints a table and writes one JSON file, named by hardware and date. Where TRL is not installed, raydpo alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path

from benchmarks.made import RESULTS
from benchmarks.step.measure import measure
from benchmarks.step.report import heading, lines, save_found
from benchmarks.step.shapes import MODELS, SHAPES, make_model
from benchmarks.step.side import SIDES, Spec

DEVICE_PAIRS = {"hh": 8, "ultrafeedback": 8, "long_prompt": 2}
"""TRL's device batch unless it is given: on the long prompt 8 pairs of 56m do not fit into 24 GB."""
TIMED = ("reference", "step")


def main() -> None:
    arguments = _arguments()
    sides = [side for side in SIDES if side == "raydpo" or importlib.util.find_spec("trl")]
    found = []
    print(heading(arguments), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        make_model(arguments.model, Path(folder) / "whole", arguments.dtype)
        for layers in (1, 2):
            make_model(arguments.model, Path(folder) / f"layers-{layers}", arguments.dtype, layers)
        for shape in arguments.shapes:
            spec = Spec(
                folder=folder,
                dtype=arguments.dtype,
                device=arguments.device,
                tokens=arguments.tokens,
                device_pairs=arguments.trl_pairs or DEVICE_PAIRS[shape],
                checkpointing=arguments.checkpointing,
                lora=arguments.lora,
                threads=arguments.threads,
            )
            result = measure(sides, spec, shape, arguments)
            found.append(result)
            print("\n".join(lines(result)), flush=True)
    print(f"written: {save_found(arguments, found)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--model", choices=sorted(MODELS), default="56m")
    parser.add_argument("--pairs", type=int, default=8, help="of a step")
    parser.add_argument("--trl-pairs", type=int, help="TRL's device batch (default: 8, long_prompt 2)")
    parser.add_argument("--tokens", type=int, default=8192, help="of a micro-batch of raydpo")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each side, interleaved; 0: count alone")
    parser.add_argument("--timed", nargs="+", choices=TIMED, default=list(TIMED))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, on both sides")
    parser.add_argument("--lora", action="store_true", help="adapters of rank 16 on all linear layers, on both sides")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
