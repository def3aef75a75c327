"""`python -m benchmarks.push`: CPU time of a push of 135 million weights in bfloat16, against copies of as many bytes.

One process has the model as a trainer of one rank has it and writes it into a file; another holds it in a generator, with the
transformers engine or vLLM, and takes it. The proof that follows a push is not in it. Sides take turns; CPU time (user and
system) of both processes, and of three copies from memory to memory that was touched before. Prints the figures and writes one
JSON file, named by hardware and date.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.made import RESULTS, cpu_cores, save
from raydpo.artifacts import shared_files
from raydpo.generate.engine import EngineSpec
from raydpo.generate.worker import Generator
from raydpo.quickstart.bpe import train_bpe
from raydpo.schema.samples import TakeWeights
from raydpo.schema.shared_weights import SharedWeights
from raydpo.train.shared_push import share

SHAPE = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
}
"""134.5 million weights with a tied head, as SmolLM-135M has them."""
COPIES = 3
MOST = 6.0
"""Times the CPU time of the copies that a push may take."""


def cpu_s() -> float:
    """User and system time of all threads of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def spent(work: Callable[[], Any]) -> float:
    began_s = cpu_s()
    work()
    return cpu_s() - began_s


def generate(folder: str, engine: str, pipe: Connection) -> None:
    """The other process: takes what comes, and says what it cost."""
    generator = Generator(EngineSpec(folder, engine=engine, dtype="bfloat16", max_length=256))
    pipe.send(0.0)
    while (request := pipe.recv()) is not None:
        pipe.send(spent(partial(generator, request)))


class Side:
    """A generator in a process of its own."""

    def __init__(self, folder: Path, engine: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=generate, args=(str(folder), engine, theirs), daemon=False)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def push(self, model: Any, version: int) -> dict[str, float]:
        """CPU seconds of the writer and of the taker."""
        found: list[SharedWeights] = []

        def write() -> None:
            shared = share(model, 0, 0, 1)
            assert isinstance(shared, SharedWeights), shared
            found.append(shared)

        writer_s = spent(write)
        self._pipe.send(TakeWeights(found[0], version))
        taker_s = self._pipe.recv()
        writer_s += spent(lambda: shared_files.remove(Path(found[0].path), found[0].key))
        return {"writer_s": writer_s, "taker_s": taker_s}

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join()


def make(folder: Path) -> Any:
    """The model, whose weights are saved to `folder`."""
    torch.manual_seed(0)
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": True}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, **tokens)).to(torch.bfloat16)
    model.save_pretrained(folder)
    train_bpe(["the cat and the hat and the bat that sat"], 272).save_pretrained(folder)
    return model


def measure(repeats: int, engines: list[str]) -> dict[str, Any]:
    """CPU seconds of each side in every repeat but a first one, their medians, and how many times the copies they are."""
    torch.set_num_threads(1)
    seconds: dict[str, list[Any]] = {"copies": [], **{engine: [] for engine in engines}}
    with tempfile.TemporaryDirectory() as name:
        model = make(Path(name))
        source = torch.cat([weight.detach().view(-1) for weight in model.parameters()])
        target = torch.zeros_like(source)
        sides = {engine: Side(Path(name), engine) for engine in engines}
        for repeat in range(repeats + 1):
            copied = spent(lambda: [target.copy_(source) for _ in range(COPIES)])
            pushed = {engine: side.push(model, repeat + 1) for engine, side in sides.items()}
            if repeat:
                seconds["copies"].append(copied)
                for engine, found in pushed.items():
                    seconds[engine].append(found)
        for side in sides.values():
            side.close()
    copies = statistics.median(seconds["copies"])
    medians = {engine: statistics.median(sum(each.values()) for each in seconds[engine]) for engine in engines}
    ratios = {engine: value / copies for engine, value in medians.items()}
    shown = ", ".join(f"{engine} {medians[engine]:.3f} s ({ratios[engine]:.1f} x)" for engine in engines)
    print(f"{source.nbytes / 1e6:.0f} MB; {COPIES} copies {copies:.3f} s of CPU; a push: {shown}")
    return {"bytes": source.nbytes, "cpu_s": seconds, "median_cpu_s": {"copies": copies, **medians}, "times": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.push", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--engines", nargs="+", choices=("transformers", "vllm"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    engines = arguments.engines or ["transformers", *(["vllm"] if find_spec("vllm") else [])]
    result = measure(arguments.repeats, engines)
    settings = {"repeats": arguments.repeats, "copies": COPIES, "most_times": MOST}
    path = save(arguments.out, "push_135m", cpu_cores(), settings, result)
    print(f"written: {path}")
    if max(result["times"].values()) > MOST:
        raise SystemExit(f"a push takes more than {MOST:g} times the CPU time of {COPIES} copies")


if __name__ == "__main__":
    main()
