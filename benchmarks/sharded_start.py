"""What a start under ZeRO-3 reads and takes for itself, at two sizes of a model, on two and on four ranks of this machine.

Random weights, no data: ranks make their model, try it out, measure its activations and read their parts, up to where the
optimizer would be made. Decision: memory is RssAnon in /proc/self/status, read every 5 ms, above what it was after the imports.
A rank may grow by 1.3 x (model / ranks + largest tensor) + 64 MB; where one grows by more the command fails.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import made
from benchmarks.process_memory import Watched

LAYERS = (8, 20)
RANKS = (2, 4)
FOLDER = Path(__file__).parent / "results"
_SHAPE = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 12}
FAMILIES = {
    "llama": _SHAPE,
    "mixtral": _SHAPE
    | {"hidden_size": 512, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8},
}


def make_model(folder: Path, num_layers: int, family: str) -> tuple[int, int]:
    """Write a random model of float32. Returns (bytes of all weights, bytes of the largest)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **FAMILIES[family], num_hidden_layers=num_layers, vocab_size=8192)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    sizes = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
    return sum(sizes), max(sizes)


def start(rank: int, num_ranks: int, port: int, folder: str, results: Any) -> None:
    """One rank."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import torch
    import transformers.models.llama.modeling_llama
    import transformers.models.mixtral.modeling_mixtral  # noqa: F401

    from raydpo.config import Config
    from raydpo.models.logprobs import AnswerLogProbs
    from raydpo.models.memory import measure
    from raydpo.models.resolve import ResolvedModel
    from raydpo.train import TrainSpec
    from raydpo.train.deepspeed_settings import deepspeed_config
    from raydpo.train.rendezvous import init_method
    from raydpo.train.sharding import shard
    from raydpo.train.start import start_of

    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False, init_method=init_method())
    config = Config.model_validate(
        {"run": {"dir": folder}, "model": {"path": folder, "dtype": "float32"}, "train": {"zero_stage": 3}}
    )
    path = Path(folder)
    spec = TrainSpec(config, ResolvedModel("start", None, path), "float32", path, path)
    with Watched() as memory:
        found = start_of(spec)
        assert found.source is not None, found.notes
        assert found.small is not None
        copy, scale = found.small
        measure(AnswerLogProbs(copy), found.layout, num_answers=2, length=512, scale=scale)
        model, source = found.model, found.source
        del copy, found
        shard(
            AnswerLogProbs(model),
            deepspeed_config(config.train, "float32", num_ranks, use_gpu=False, sizes=[1]),
            source,
        )
    results.put((rank, source.reader.bytes_read, memory.grown_bytes))


def run(folder: Path, num_ranks: int) -> list[tuple[int, int]]:
    """(bytes read, growth in bytes) of each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=start, args=(n, num_ranks, port, str(folder), results)) for n in range(num_ranks)]
    for each in ranks:
        each.start()
    found = sorted(results.get(timeout=300) for _ in ranks)
    for each in ranks:
        each.join()
    return [(read, growth) for _, read, growth in found]


def main() -> None:
    """Measure, print, save; fail where a rank grew by more than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    parser.add_argument("--family", choices=FAMILIES, default="llama")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    rows, too_much = [], False
    with tempfile.TemporaryDirectory() as folder:
        for num_layers in options.layers:
            path = Path(folder) / str(num_layers)
            whole, largest = make_model(path, num_layers, options.family)
            for num_ranks in options.ranks:
                allowed = round(1.3 * (whole / num_ranks + largest) + 64e6)
                for rank, (read, growth) in enumerate(run(path, num_ranks)):
                    too_much = too_much or growth > allowed
                    row = {
                        "family": options.family,
                        "layers": num_layers,
                        "ranks": num_ranks,
                        "rank": rank,
                        "model_bytes": whole,
                        "read_bytes": read,
                    }
                    rows.append(row | {"growth_bytes": growth, "allowed_bytes": allowed})
                    print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    made.save(options.out, f"sharded_start_{options.family}", made.cpu_cores(), vars(options), rows)
    if too_much:
        raise SystemExit("a rank grew by more than it may")


if __name__ == "__main__":
    main()
