"""`make large`: a model of some 300 million weights as if it were too large: its reference streamed, memory counted.

Comes in: nothing; the model is random. Goes out: one JSON file, named by hardware and date, and a line a measurement. Decision:
each scoring is a process of its own, and what is counted is how far its anonymous memory (RssAnon) grows after the imports,
looked at every 5 ms; mapped files are not in it. The bound: a quarter of the model's bytes, with the activations and logits
that are stated. Then a training of two ranks (`benchmarks.large_training`). It fails where anything is not as it has to be.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.large_training import problems, said, training
from benchmarks.made import RESULTS, cpu_cores, save
from benchmarks.process_memory import Watched
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
        found = []
        for dtype, weights in CASES:
            found.append(in_a_process(Asked(folder, dtype, weights)))
            print(line(found[-1]), flush=True)
        trained = training(Path(folder))
        limit = bound(Path(folder), "bfloat16")["bound_bytes"]
    print(said(trained), flush=True)
    wrong = problems(trained, num_weights, limit)
    if len({(one["dtype"], one["nats_sha256"]) for one in found}) != len({dtype for dtype, _ in CASES}):
        wrong.append("streamed and whole values differ")
    over = [line(one) for one in found if one["weights"] == "streamed" and one["grown_bytes"] > one["bound_bytes"]]
    results = {"weights": num_weights, "scorings": found, "training": trained}
    print(save(RESULTS, "large", cpu_cores(), SHAPE | {"vocabulary": VOCABULARY}, results))
    if wrong or over:
        raise SystemExit("\n".join(wrong + [f"more memory than the bound: {text}" for text in over]))


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


def line(found: dict[str, Any]) -> str:
    """A measurement as a sentence."""
    sizes = {name: found[f"{name}_bytes"] / 1e6 for name in ("grown", "model", "stated", "bound")}
    text = f"{found['weights']} in {found['dtype']}: memory grew by {sizes['grown']:.0f} MB"
    text += f"; the model has {sizes['model']:.0f} MB"
    if found["weights"] == "whole":
        return text
    more = f"a quarter and {sizes['stated']:.0f} MB of activations and logits are {sizes['bound']:.0f} MB"
    return f"{text}, {more}; {found['passes']} passes, {found['read_bytes'] / 1e6:.0f} MB of weights read"


def _digest(values: list[np.ndarray]) -> str:
    import hashlib

    return hashlib.sha256(np.concatenate(values).tobytes()).hexdigest()


if __name__ == "__main__":
    main()
