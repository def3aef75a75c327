"""The training of `make large`: two steps in bfloat16 by ZeRO 3 with offload on two ranks, exported in several files.

Comes in: a folder with a model. Goes out: what happened, as a dict and as a sentence. Decision: the run is one as people start
it, on the local runtime; memory of its processes is read from outside. What a rank takes is held against nothing but the
plan's bytes, which stand beside it: those are tensors alone. A worker that streams is held to the bound of `make large`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.process_memory import actors_grown

NUM_RANKS, NUM_STEPS, PAIRS_A_STEP, MAX_TOKENS = 2, 2, 2, 16
"""2 pairs a step, each of two rows of at most 16 tokens: 64 tokens."""
MAX_SHARD = 200_000_000
BUCKET_ELEMENTS = 20_000_000
"""Of the buffers in which gradients are reduced: a tenth of the default, which would be most of what a rank takes."""


def training(folder: Path) -> dict[str, Any]:
    """Train with the reference scored by the ranks; score it again streamed; load with transformers what was exported."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from raydpo.capacity.machine_room import Room
    from raydpo.capacity.planning import Question, plan_run
    from raydpo.pipelines import precompute, train

    logging.disable_progress_bar()
    rows = [{"prompt": f"sort {n}", "chosen": f" {n} no", "rejected": f" no {n}"} for n in range(12, 16)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    planned = plan_run(config_of(folder, "trainers"), Question(Room(None, 0, 10**12)))["roles"][0]
    with actors_grown() as ranks:
        summary = train(config_of(folder, "trainers"))
    with actors_grown() as workers:
        streamed = precompute(config_of(folder, "streamed"))
    caches = [
        {path.name: path.read_bytes() for path in (folder / weights / "cache").glob("*/shards/*.arrow")}
        for weights in ("trainers", "streamed")
    ]
    exported = Path(summary["train"]["model"])
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.bfloat16)
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    return {
        "steps": summary["train"]["steps"],
        "probe": summary["train"]["probe"],
        "rows_scored_by_trainers": summary["reference"]["rows_scored"],
        "rank_grown_bytes": ranks["RankActor"],
        "rank_planned_bytes": round(planned["bytes"]),
        "rank_planned_parts": {name: round(size) for name, size in planned["parts"].items() if size},
        "streamed": streamed["reference"] | {"cache": ""},
        "streamed_grown_bytes": max(size for sizes in workers.values() for size in sizes),
        "is_cache_equal": bool(caches[0]) and caches[0] == caches[1],
        "files": {path.name: path.stat().st_size for path in sorted(exported.glob("*.safetensors"))},
        "weights_loaded": model.num_parameters(),
        "tensors_changed": sum(not torch.equal(one, two) for one, two in pairs),
    }


def config_of(folder: Path, weights: str) -> Any:
    """Of the run; weights: who scores the reference."""
    from raydpo.config import Config

    return Config.model_validate(
        {
            "run": {"dir": str(folder / weights / "run"), "runtime": "local", "runtime_in_process": False},
            "model": {"path": str(folder), "dtype": "bfloat16"},
            "data": {"train": [str(folder / "pairs.jsonl")], "max_length": MAX_TOKENS},
            "objective": {"name": "dpo"},
            "reference": {"cache_dir": str(folder / weights / "cache"), "weights": weights},
            "train": {"num_workers": NUM_RANKS, "zero_stage": 3, "offload_optimizer": True}
            | {"global_batch_pairs": PAIRS_A_STEP, "max_steps": NUM_STEPS, "epochs": 1, "learning_rate": 1e-5}
            | {"save": "weights", "max_shard_size": MAX_SHARD}
            | {"deepspeed": {"zero_optimization": {"reduce_bucket_size": BUCKET_ELEMENTS}}},
        }
    )


def problems(trained: dict[str, Any], num_weights: int, bound_bytes: int) -> list[str]:
    """What is not as it has to be. bound_bytes: for the worker that streams."""
    head_bytes = 100_000  # of a safetensors file
    wrong = {
        "trainers and a streamed worker scored different values": not trained["is_cache_equal"],
        f"not {NUM_STEPS} steps": trained["steps"] != NUM_STEPS,
        f"not {NUM_RANKS} ranks were seen": len(trained["rank_grown_bytes"]) != NUM_RANKS,
        "the export is one file": len(trained["files"]) < 2,
        "a file is larger than asked": max(trained["files"].values()) > MAX_SHARD + head_bytes,
        "transformers loads another number of weights": trained["weights_loaded"] != num_weights,
        "training changed nothing": not trained["tensors_changed"],
        "the streamed worker took more memory than the bound": trained["streamed_grown_bytes"] > bound_bytes,
    }
    return [text for text, is_so in wrong.items() if is_so]


def said(trained: dict[str, Any]) -> str:
    """The training as sentences."""
    grown = " and ".join(f"{size / 1e6:.0f}" for size in trained["rank_grown_bytes"])
    largest = max(trained["files"].values()) / 1e6
    ranks, is_equal = len(trained["rank_grown_bytes"]), trained["is_cache_equal"]
    planned, streamed = (trained[f"{name}_bytes"] / 1e6 for name in ("rank_planned", "streamed_grown"))
    return (
        f"{trained['steps']} steps in bfloat16 by ZeRO 3 with offload on {ranks} ranks, which before scored "
        f"{trained['rows_scored_by_trainers']} rows (equal to a streamed worker's: {is_equal}) and grew by {grown} MB "
        f"(tensors as planned: {planned:.0f} MB); the streamed worker grew by {streamed:.0f} MB. Exported in "
        f"{len(trained['files'])} files of at most {largest:.0f} MB, of which transformers loads "
        f"{trained['weights_loaded']:,} weights; {trained['tensors_changed']} tensors changed"
    )
