"""`python -m benchmarks.plan_error`: how far `raydpo plan` is from trainings, for three architectures of at least 50 MB, all
weights and an adapter, three ZeRO stages.

Prints a line a training and writes one JSON file, named by hardware and date; exits with 1 where an error is above a tenth.
Decision: bytes are counted (`benchmarks.counted_training`), so that a busy machine cannot move them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.counted_training import Shape, compared, config_of, write_model, write_pairs
from benchmarks.made import RESULTS, cpu_cores, save

WITHIN = 0.1
WIDE: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1024}
SHAPES: dict[str, Shape] = {
    "llama": {**WIDE, "vocab_size": 8000, "num_hidden_layers": 6, "tie_word_embeddings": True},
    "gemma2": {**WIDE, "vocab_size": 12000, "num_hidden_layers": 6, "num_key_value_heads": 2, "head_dim": 64},
    "gpt_neox": {**WIDE, "vocab_size": 6000, "num_hidden_layers": 6},
}
LEAST_BYTES = 50_000_000
PAIRS, PAIRS_A_MICRO_BATCH, WORDS = 6, 3, 40


def rows(root: Path, families: Sequence[str], dtypes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One entry a training, as soon as it is over."""
    budget = PAIRS_A_MICRO_BATCH * write_pairs(root / "pairs.jsonl", 2 * PAIRS, WORDS)
    for family in families:
        num_bytes = 4 * write_model(root / family, family, SHAPES[family])
        assert num_bytes >= LEAST_BYTES, f"{family} has {num_bytes:,} bytes"
        for dtype, lora, stage in [(d, a, s) for d in dtypes for a in (None, {"rank": 16}) for s in (0, 2, 3)]:
            name = f"{family}-{dtype}-{'lora' if lora else 'full'}-{stage}"
            train = {"global_batch_pairs": PAIRS, "tokens_per_microbatch": budget, "zero_stage": stage, "lora": lora}
            config = config_of(root / family, root / "pairs.jsonl", root / name, dtype, train)
            row = {"training": name, "model_bytes": num_bytes, **compared(config)}
            print(
                f"{name:32} planned {row['planned'] / 1e6:8.1f} MB, counted {row['counted'] / 1e6:8.1f} MB, "
                f"{100 * row['error']:+.1f} %, without the bucket {100 * row['error_without_bucket']:+.1f} %",
                flush=True,
            )
            yield row


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder), options.families, options.dtypes):
            found.append(row)
            path = save(
                options.out, "plan", cpu_cores(), vars(options), found
            )  # what was measured stays if it is ended
    print(path)
    return int(any(abs(row[error]) > WITHIN for row in found for error in ("error", "error_without_bucket")))


if __name__ == "__main__":
    sys.exit(main())
