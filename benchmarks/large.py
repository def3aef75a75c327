"""`make large`: a model of some 300 million weights as if it were too large: its reference streamed, memory counted.

Comes in: nothing; the model is random. Goes out: one JSON file, named by hardware and date, and a line a measurement. Decision:
each scoring is a process of its own, and what is counted is how far its anonymous memory (RssAnon) grows after the imports,
looked at every 5 ms; mapped files are not in it. The bound: a quarter of the model's bytes, with the activations and logits
that are stated. Then two steps of a training whose reference its ranks score, and what transformers loads of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.made import RESULTS, cpu_cores, save
from raydpo.quickstart.bpe import train_bpe

SHAPE = {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 2816, "num_attention_heads": 16}
VOCABULARY = 8192
ROWS, ROW_TOKENS, TOKENS_PER_BATCH, TOKENS_PER_PASS = 24, 32, 128, 512
CASES = (("bfloat16", "streamed"), ("float32", "streamed"), ("float32", "whole"))
_CHUNK_TOKENS = 1024


@dataclass(frozen=True)
class Asked:
    """One scoring: in which dtype, held how, from which folder."""

    folder: str
    dtype: str
    weights: str


def main() -> None:
    """Make the model, score it in each way, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--score", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.score:
        print(json.dumps(scored(Asked(**json.loads(asked.score)))))
        return
    with tempfile.TemporaryDirectory(prefix="large-") as folder:
        num_weights = write_model(Path(folder))
        found = [in_a_process(Asked(folder, dtype, weights)) for dtype, weights in CASES]
        trained = training(Path(folder))
    for one in found:
        print(line(one), flush=True)
    print(said(trained), flush=True)
    assert trained["is_cache_equal"], "trainers and streamed values differ"
    digests = {(one["dtype"], one["nats_sha256"]) for one in found}
    assert len(digests) == len({dtype for dtype, _ in CASES}), "streamed and whole values differ"
    over = [line(one) for one in found if one["weights"] == "streamed" and one["grown_bytes"] > one["bound_bytes"]]
    results = {"weights": num_weights, "scorings": found, "training": trained}
    print(save(RESULTS, "large", cpu_cores(), SHAPE | {"vocabulary": VOCABULARY}, results))
    assert not over, f"more memory than the bound: {over}"


def write_model(folder: Path) -> int:
    """A random Llama in bfloat16, in files of 100 MB; its number of weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_bpe(["sort 12 34 56 78 90 no"] * 2, 280)
    torch.manual_seed(0)
    heads = {"num_key_value_heads": 16, "max_position_embeddings": 256, "tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SHAPE, **heads)).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100MB")
    tokenizer.save_pretrained(folder)
    found: int = model.num_parameters()
    return found


def in_a_process(asked: Asked) -> dict[str, Any]:
    """What `scored` gives in a new process."""
    command = [sys.executable, "-m", "benchmarks.large", "--score", json.dumps(asdict(asked))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def scored(asked: Asked) -> dict[str, Any]:
    """Score random rows; how far the memory of this process grows meanwhile, and what was read."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401 the classes, which are imported when they are asked for

    from raydpo.models.layer_stream import LayerStream
    from raydpo.models.layer_weights import LayerWeights
    from raydpo.models.layout import choose_layout
    from raydpo.models.logprobs import AnswerLogProbs, check_head
    from raydpo.models.pretrained import DTYPES, load_model
    from raydpo.models.together import one_by_one
    from raydpo.reference.forward import RowList, score_rows
    from raydpo.reference.streamed import PassScoring

    torch.set_num_threads(2)
    with Watched() as memory:
        stream, together = None, one_by_one
        if asked.weights == "streamed":
            stream = LayerStream(LayerWeights(Path(asked.folder), DTYPES[asked.dtype], "auto", "cpu"))
            model, together = stream.model, stream.run
        else:
            model = load_model(Path(asked.folder), asked.dtype, "auto")
        check_head(AnswerLogProbs(model), together)
        layout, _ = choose_layout(model, "auto", together)
        rows = RowList(random_rows(), [None] * ROWS, TOKENS_PER_BATCH)
        if stream is None:
            values, _ = score_rows(AnswerLogProbs(model), rows.rows, TOKENS_PER_BATCH, layout, "cpu", rows.masks)
        else:
            ((values, _),) = PassScoring(stream, layout, "cpu", TOKENS_PER_PASS).score([rows], lambda *_: None)
    return {
        "dtype": asked.dtype,
        "weights": asked.weights,
        "grown_bytes": memory.grown_bytes,
        **bound(Path(asked.folder), asked.dtype),
        "passes": stream.passes if stream else 0,
        "read_bytes": stream.weights.files.bytes_read if stream else 0,
        "nats_sha256": _digest(values),
    }


def training(folder: Path) -> dict[str, Any]:
    """Two steps in bfloat16 by ZeRO 3 with offload on two ranks, of at most 64 tokens each; the reference by the trainers, and
    once more streamed. Loads what is exported with transformers."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from raydpo.config import Config
    from raydpo.pipelines import precompute, train

    logging.disable_progress_bar()
    rows = [{"prompt": f"sort {n}", "chosen": f" {n} no", "rejected": f" no {n}"} for n in range(12, 16)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def config(weights: str) -> Config:
        return Config.model_validate(
            {
                "run": {"dir": str(folder / weights / "run"), "runtime": "local"},
                "model": {"path": str(folder), "dtype": "bfloat16"},
                "data": {"train": [str(folder / "pairs.jsonl")], "max_length": 16},
                "objective": {"name": "dpo"},
                "reference": {"cache_dir": str(folder / weights / "cache"), "weights": weights},
                "train": {"num_workers": 2, "zero_stage": 3, "offload_optimizer": True, "global_batch_pairs": 2}
                | {"max_steps": 2, "epochs": 1, "learning_rate": 1e-5, "save": "weights"},
            }
        )

    summary, streamed = train(config("trainers")), precompute(config("streamed"))
    caches = [
        {path.name: path.read_bytes() for path in (folder / weights / "cache").glob("*/shards/*.arrow")}
        for weights in ("trainers", "streamed")
    ]
    model = AutoModelForCausalLM.from_pretrained(summary["train"]["model"], dtype=torch.bfloat16)
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    return {
        "steps": summary["train"]["steps"],
        "probe": summary["train"]["probe"],
        "rows_scored_by_trainers": summary["reference"]["rows_scored"],
        "streamed": streamed["reference"] | {"cache": ""},
        "is_cache_equal": caches[0] == caches[1],
        "weights_loaded": model.num_parameters(),
        "tensors_changed": sum(not torch.equal(one, two) for one, two in pairs),
    }


def bound(folder: Path, dtype: str) -> dict[str, int]:
    """Bytes: of the model in `dtype`, of what is stated besides, and a quarter of the one with the other."""
    from math import prod

    from raydpo.models.weight_shapes import shapes_of_model

    item = {"float32": 4, "bfloat16": 2}[dtype]
    hidden, width = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    model = item * sum(map(prod, (shapes_of_model(folder) or {}).values()))
    activations = item * (2 * hidden * TOKENS_PER_PASS + (4 * hidden + 3 * width) * TOKENS_PER_BATCH)
    logits = 12 * VOCABULARY * min(_CHUNK_TOKENS, TOKENS_PER_BATCH)
    widened = min(64 * 2**20, 4 * VOCABULARY * hidden) if dtype == "bfloat16" else 0  # rows of the head, on a CPU
    stated = activations + logits + widened
    return {"model_bytes": model, "stated_bytes": stated, "bound_bytes": model // 4 + stated}


def random_rows() -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of answers to a prompt."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, VOCABULARY, ROW_TOKENS // 2) for _ in range(ROWS // 2)]
    return [(prompt, draw.integers(0, VOCABULARY, ROW_TOKENS // 2)) for prompt in prompts for _ in range(2)]


class Watched:
    """The largest RssAnon of this process while it is open. grown_bytes: how far that is above what it was at the start."""

    def __enter__(self) -> Watched:
        self._start = self._most = anonymous_bytes()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.grown_bytes = max(self._most, anonymous_bytes()) - self._start

    def _look(self) -> None:
        while not self._is_over.is_set():
            self._most = max(self._most, anonymous_bytes())
            time.sleep(0.005)


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 for text in lines if text.startswith("RssAnon"))


def line(found: dict[str, Any]) -> str:
    """A measurement as a sentence."""
    sizes = {name: found[f"{name}_bytes"] / 1e6 for name in ("grown", "model", "stated", "bound")}
    text = f"{found['weights']} in {found['dtype']}: memory grew by {sizes['grown']:.0f} MB"
    text += f"; the model has {sizes['model']:.0f} MB"
    if found["weights"] == "whole":
        return text
    more = f"a quarter and {sizes['stated']:.0f} MB of activations and logits are {sizes['bound']:.0f} MB"
    return f"{text}, {more}; {found['passes']} passes, {found['read_bytes'] / 1e6:.0f} MB of weights read"


def said(trained: dict[str, Any]) -> str:
    """The training as a sentence."""
    return (
        f"{trained['steps']} steps in bfloat16 by ZeRO 3 with offload on two ranks, which before scored "
        f"{trained['rows_scored_by_trainers']} rows (equal to a streamed worker's: {trained['is_cache_equal']}); transformers "
        f"loads {trained['weights_loaded']:,} weights, {trained['tensors_changed']} tensors changed"
    )


def _digest(values: list[np.ndarray]) -> str:
    import hashlib

    return hashlib.sha256(np.concatenate(values).tobytes()).hexdigest()


if __name__ == "__main__":
    main()
