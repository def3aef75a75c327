"""The doors, registries that are open to others: every key whose value names a part of the program, and what is ours there.

One line here enters one more of ours: its name in the config and "module:attribute" where it is. An outside one needs no
line: its name says where it is. docs/extend.md has the protocol of each door and an example. (Objectives and judges
have more to say of each than a place: `objective_table`, `round_sections`.)
"""

from __future__ import annotations

import math
from typing import Any

from raydpo.config.outside import Door


def _gives_shares(found: Any) -> str | None:
    """What is wrong with a schedule, tried at the beginning and the end of ten steps."""
    for step in (0, 9):
        try:
            share = found(step, 10)
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything
            return f"raised {type(error).__name__}: {error}, when it was asked for step {step} of 10"
        if not isinstance(share, int | float) or not (math.isfinite(share) and share >= 0):
            return f"gave {share!r} for step {step} of 10, where a finite number of at least 0 is allowed"
    return None


FORMATS = Door(
    "data.format",
    {
        "auto": "",
        "standard": "raydpo.data.plain_rows:STANDARD",
        "conversational": "raydpo.data.chat_rows:CONVERSATIONAL",
        "ultrafeedback": "raydpo.data.chat_rows:ULTRAFEEDBACK",
        "sharegpt": "raydpo.data.chat_rows:SHAREGPT",
        "alpaca": "raydpo.data.chat_rows:ALPACA",
        "hh": "raydpo.data.plain_rows:HH",
        "scored": "raydpo.data.scored_rows:SCORED",
        "labelled": "raydpo.data.single_rows:LABELLED",
        "text": "raydpo.data.single_rows:TEXT",
        "tokenized": "raydpo.data.token_rows:TOKENIZED",
    },
    is_kind="a format",
    has=("title", "data", "fits", "convert"),
    say="Name a raydpo.data.format.Format(name, title, fits, convert).",
    lost="no row could have been read",
    reader="starts a run",
)

SCHEDULES = Door(
    "train.schedule",
    {
        "cosine": "raydpo.train.schedule:cosine",
        "linear": "raydpo.train.schedule:linear",
        "constant": "raydpo.train.schedule:constant",
        "cosine_to_tenth": "raydpo.train.schedule:cosine_to_tenth",
    },
    is_kind="a function",
    takes=2,
    trial=_gives_shares,
    say="Name a function (step, num_steps) -> share of the peak learning rate.",
    lost="no step would have had a learning rate",
    reader="trains",
)

SINKS = Door(
    "train.sinks",
    {"jsonl": "raydpo.metrics.sinks:MetricsFile", "tensorboard": "raydpo.metrics.sinks:TensorBoard"},
    is_kind="a class",
    has=("write", "close"),
    takes=2,
    say="Name a class (run_dir, resume_step) with write(step, metrics) and close().",
    lost="no metrics would have come there",
    reader="starts a run",
    is_list=True,
)

ENGINES = Door(
    "generate.engine",
    {
        "transformers": "raydpo.generate.transformers_engine:TransformersEngine",
        "vllm": "raydpo.generate.vllm_engine:VllmEngine",
    },
    is_kind="a class",
    has=("generate", "score", "load_folder", "load_weights", "finish_loading", "health"),
    takes=1,
    say="Name a class (spec) with the methods of raydpo.generate.Engine.",
    lost="nothing was loaded",
    reader="samples",
)

ENGINE_CHECKS = {"vllm": "raydpo.generate.vllm_bounds:problems"}
"""Engines of ours that cannot do everything -> their `problems`: of a section `generate`, as sentences, without loading
anything. An outside engine may have a static method of this name."""

PAIRS = Door(
    "rounds.pairs",
    {
        "best_worst": "raydpo.judge.pairs:best_worst",
        "best_random": "raydpo.judge.pairs:best_random",
        "all_above_margin": "raydpo.judge.pairs:all_above_margin",
        "top_k": "raydpo.judge.pairs:top_k_pairs",
        "spin": "",
    },
    is_kind="a function",
    takes=5,
    say="Name a function (samples, scores, kept, top_k, seed) -> (chosen, rejected) of each pair, places in samples.",
    lost="no pairs would have been made",
    reader="starts a run",
)

JUDGE_FUNCTIONS = Door(
    "judge.function",
    {},
    is_kind="a function",
    say="Name a function (prompt, responses) -> scores.",
    lost="nothing could have been judged",
    reader="judges",
)
