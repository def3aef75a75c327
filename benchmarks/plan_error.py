"""`python -m benchmarks.plan_error`: how far `raydpo plan` is from trainings, for three architectures of at least 50 MB, all
weights and an adapter, three ZeRO stages; for the smallest also with offload and on two ranks, which may share sequences.

Prints a line a training and writes one JSON file, named by hardware and date; exits with 1 where an error is above a tenth.
Decision: bytes are counted (`benchmarks.counted_training`), so that a busy machine cannot move them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
SMALLEST = "llama"
"""Trained on two ranks and with offload, too."""
PAIRS, PAIRS_A_MICRO_BATCH, WORDS = 6, 3, 40
"""Pairs are those of a rank, or of ranks that share their sequences."""


class Case(NamedTuple):
    """One training. name: of it; family, dtype; num_groups: of ranks, each of which reads sequences of its own; train: keys."""

    name: str
    family: str
    dtype: str
    num_groups: int
    train: Mapping[str, Any]


def cases_alone(families: Sequence[str], dtypes: Sequence[str]) -> Iterator[Case]:
    """On one rank, each architecture in full and as an adapter."""
    for family in families:
        for dtype, lora, stage in [(d, a, s) for d in dtypes for a in (None, {"rank": 16}) for s in (0, 2, 3)]:
            name = f"{family}-{dtype}-{'lora' if lora else 'full'}-{stage}"
            yield Case(name, family, dtype, 1, {"zero_stage": stage, "lora": lora})


def cases_of_ranks(families: Sequence[str], dtypes: Sequence[str]) -> Iterator[Case]:
    """The smallest architecture: offload on one rank, two ranks under each stage, two that share every sequence."""
    if SMALLEST not in families:
        return
    for dtype, size, ranks in [(d, s, r) for d in dtypes for s, r in ((1, 1), (1, 2), (2, 2))]:
        stages: list[dict[str, Any]] = [{"zero_stage": stage, "offload_optimizer": True} for stage in (1, 2, 3)]
        stages.append({"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True})
        stages += [{"zero_stage": stage} for stage in (0, 1, 2, 3)] if ranks > 1 else []
        for keys in stages if size == 1 else stages[1:2] + stages[-2:]:
            what = "".join(f"-{key.replace('_', '-')}" for key in keys if key != "zero_stage")
            name = f"{SMALLEST}-{dtype}-{ranks} ranks{'-shared' if size > 1 else ''}-{keys['zero_stage']}{what}"
            train = {"num_workers": ranks, "sequence_parallel_size": size, **keys}
            yield Case(name, SMALLEST, dtype, ranks // size, train)


def rows(root: Path, cases: Iterable[Case]) -> Iterator[dict[str, Any]]:
    """One entry a training, as soon as it is over."""
    sizes: dict[str, int] = {}
    for case in cases:
        if case.family not in sizes:
            sizes[case.family] = 4 * write_model(root / case.family, case.family, SHAPES[case.family])
            assert sizes[case.family] >= LEAST_BYTES, f"{case.family} has {sizes[case.family]:,} bytes"
        pairs, number = root / f"pairs-{case.num_groups}.jsonl", PAIRS * case.num_groups
        budget = PAIRS_A_MICRO_BATCH * write_pairs(pairs, 2 * number, WORDS)
        train = {"global_batch_pairs": number, "tokens_per_microbatch": budget, **case.train}
        config = config_of(root / case.family, pairs, root / case.name, case.dtype, train)
        row = {"training": case.name, "model_bytes": sizes[case.family], **compared(config)}
        print(
            f"{case.name:64} planned {row['planned'] / 1e6:8.1f} MB, counted {row['counted'] / 1e6:8.1f} MB, "
            f"{100 * row['error']:+.1f} %, without the bucket {100 * row['error_without_bucket']:+.1f} %",
            flush=True,
        )
        yield row


WHICH = {"alone": cases_alone, "ranks": cases_of_ranks}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--which", nargs="+", choices=WHICH, default=list(WHICH))
    parser.add_argument("--only", default="", help="a part of the names of the trainings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cases = [case for which in options.which for case in WHICH[which](options.families, options.dtypes)]
        for row in rows(Path(folder), [case for case in cases if options.only in case.name]):
            found.append(row)
            what = "plan" if len(options.which) > 1 else f"plan_{options.which[0]}"
            path = save(options.out, what, cpu_cores(), vars(options), found)  # what was measured stays if it is ended
    print(path)
    return int(any(abs(row[error]) > WITHIN for row in found for error in ("error", "error_without_bucket")))


if __name__ == "__main__":
    sys.exit(main())
