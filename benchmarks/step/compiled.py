"""`python -m benchmarks.step.compiled`: whether torch.compile makes raydpo's step faster.

The same step as it is, with compiled MLPs and with whole compiled decoder layers, taking turns; the first step of each,
in which it is compiled, is told apart. Prints the figures and writes one JSON file, named by hardware and date.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.made import made_now
from benchmarks.step.ours import Ours
from benchmarks.step.shapes import MODELS, SHAPES, make_model, pairs_of
from benchmarks.step.side import Spec, prepare_torch, synchronize
from raydpo.models.memory import decoder_layers

RESULTS = Path(__file__).parents[1] / "results"
WAYS = ("plain", "mlp", "layers")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the first and of the later steps of each way, and the loss of each step; or why it failed."""
    pairs = pairs_of(arguments.shape, arguments.pairs, arguments.model)
    found: dict[str, dict[str, Any]] = {way: {"step_s": [], "loss": []} for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        make_model(arguments.model, Path(folder), arguments.dtype)
        spec = Spec(folder, arguments.dtype, arguments.device, arguments.tokens, arguments.pairs)
        prepare_torch(spec)
        sides = {way: _side(way, spec) for way in WAYS}
        feeds = {way: side.prepare(pairs, side.reference(pairs)) for way, side in sides.items()}
        for _ in range(arguments.repeats + 1):
            for way, side in list(sides.items()):
                began_s = time.perf_counter()
                try:
                    loss = side.step(feeds[way])
                except torch._dynamo.exc.TorchDynamoException as error:
                    found[way]["failed"] = str(error).splitlines()[0]
                    del sides[way]
                    continue
                synchronize(spec)
                found[way]["step_s"].append(time.perf_counter() - began_s)
                found[way]["loss"].append(loss)
    return found


def _side(way: str, spec: Spec) -> Ours:
    side = Ours(spec)
    layers: list[Any] = [] if way == "plain" else list(decoder_layers(side.model))
    for layer in layers:
        (layer.mlp if way == "mlp" else layer).compile(dynamic=True)
    return side


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step.compiled", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="hh")
    parser.add_argument("--model", choices=sorted(MODELS), default="56m")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192, help="of a micro-batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found, about = measure(arguments), made_now()
    for way, one in found.items():
        first, *later = one["step_s"] or [float("nan")]
        median = f"{statistics.median(later):.2f} s" if later else "none"
        print(f"{way:7} first step {first:.1f} s, later {median} {one.get('failed', '')}")
    asked = {name: value for name, value in vars(arguments).items() if name != "out"}
    path = arguments.out / f"compiled_{arguments.model}_{arguments.shape}_{arguments.device}_{about['date']}.json"
    path.write_text(json.dumps({"made": about, "asked": asked, "results": found}, indent=2) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
