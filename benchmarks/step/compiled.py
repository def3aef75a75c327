"""`python -m benchmarks.step.compiled`: whether torch.compile makes raydpo's step faster.

The same steps as they are, with compiled MLPs and with compiled decoder layers (`train.compile`), taking turns. Every step
has other pairs, as in a run: what is compiled again for them is in the times. Prints the figures and writes one JSON file,
named by hardware and date.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks.made import RESULTS, cpu_cores, save
from benchmarks.step.ours import Ours
from benchmarks.step.shapes import MODELS, SHAPES, make_model, pairs_of
from benchmarks.step.side import Spec, no_reference, prepare_torch, synchronize
from raydpo.models.compiled import compile_layers
from raydpo.models.memory import decoder_layers

WAYS = ("plain", "mlp", "layers")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and loss of each step of each way, and the graphs compiled in it; or why it failed."""
    number = arguments.pairs
    pairs = pairs_of(arguments.shape, number * arguments.steps, arguments.model)
    batches = [pairs[start : start + number] for start in range(0, len(pairs), number)]
    found: dict[str, dict[str, Any]] = {way: {"step_s": [], "loss": [], "graphs": []} for way in arguments.ways}
    with tempfile.TemporaryDirectory() as folder:
        make_model(arguments.model, Path(folder), arguments.dtype)
        spec = Spec(folder, arguments.dtype, arguments.device, arguments.tokens, number)
        prepare_torch(spec)
        sides = {way: _side(way, spec) for way in arguments.ways}
        for batch in batches:
            for way, side in list(sides.items()):
                feed = side.prepare(batch, no_reference(batch))
                before, began_s = _graphs(), time.perf_counter()
                try:
                    loss = side.step(feed)
                except torch._dynamo.exc.TorchDynamoException as error:
                    found[way]["failed"] = str(error).splitlines()[0]
                    del sides[way]
                    continue
                synchronize(spec)
                found[way]["step_s"].append(time.perf_counter() - began_s)
                found[way]["loss"].append(loss)
                found[way]["graphs"].append(_graphs() - before)
    return found


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _side(way: str, spec: Spec) -> Ours:
    side = Ours(spec)
    if way == "layers":
        compile_layers(side.model, side.layout)
    elif way == "mlp":
        for layer in decoder_layers(side.model):
            cast(Any, layer).mlp.compile(dynamic=True)
    return side


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step.compiled", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="hh")
    parser.add_argument("--model", choices=sorted(MODELS), default="56m")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192, help="of a micro-batch")
    parser.add_argument("--steps", type=int, default=8, help="each on other pairs")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    found = measure(arguments)
    for way, one in found.items():
        seconds = " ".join(f"{each:.2f}" for each in one["step_s"])
        graphs = " ".join(map(str, one["graphs"]))
        print(f"{way:6} steps {seconds} s, graphs compiled {graphs} {one.get('failed', '')}")
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else cpu_cores()
    what = f"compiled_{arguments.model}_{arguments.shape}"
    print(f"written: {save(arguments.out, what, device, vars(arguments), found)}")


if __name__ == "__main__":
    main()
