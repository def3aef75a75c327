"""Rounds on the toy model: config, a judge in a module, and what tests ask of a run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from raydpo.config import Config
from raydpo.data.prompts import read_prompts
from raydpo.data.tokenizer import TextTokenizer
from tests.pipelines.toy import Toy, config

NUM_PROMPTS = 24


def rounds_config(toy: Toy, run_dir: Path, changes: Mapping[str, Any] | None = None) -> Config:
    """Two rounds of 24 prompts in items of 4, four answers each; a generator, a rank, a judge in an actor."""
    prompts = toy.root / "prompts.jsonl"
    if not prompts.is_file():
        rows = [json.loads(line)["prompt"] for line in toy.train.read_text().splitlines()[:NUM_PROMPTS]]
        prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in rows))
        rows = [json.loads(line)["prompt"] for line in toy.eval.read_text().splitlines()]
        (toy.root / "held_out.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in rows))
    sections = {
        "data.train": [],
        "reference.cache_dir": str(toy.root / "rounds-cache"),
        "data.eval": [],
        "generate.num_workers": 1,
        "generate.num_answers": 4,
        "generate.max_new_tokens": 8,
        "generate.prompts_per_item": 4,
        "judge.kind": "function",
        "judge.function": "tests.pipelines.rounds.toy_rounds:no_digits",
        "rounds.prompts": [str(prompts)],
        "rounds.eval_prompts": [str(toy.root / "held_out.jsonl")],
        "rounds.num_rounds": 2,
        "rounds.reference": "initial",
        "rounds.truncated": "keep",
        "train.eval_every": None,
        "train.save_every": None,
        "train.global_batch_pairs": 8,
    }
    merged = {**sections, **(changes or {})}
    if merged["judge.kind"] != "function":
        merged.pop("judge.function", None)
    return config(toy, run_dir, merged)


def no_digits(prompt: str, responses: list[str]) -> list[float]:
    """A judge that nothing can mistake: how many characters of a response are no digits."""
    return [float(sum(not character.isdigit() for character in response)) for response in responses]


def held_out_ids(config: Config) -> list[tuple[int, ...]]:
    """Token ids of the held-out prompts, in the order in which they are measured."""
    assert config.rounds is not None
    tokenizer = TextTokenizer(config.model.path)
    prompts, _ = read_prompts(
        "rounds.eval_prompts",
        config.rounds.eval_prompts,
        tokenizer,
        max_length=57,
        control_tokens="plain",
        max_bad_fraction=0,
    )
    return [prompt.ids for prompt in prompts]


def greedy_ids(folder: Path) -> list[list[int]]:
    """The greedy answers of a round's evaluation, without an end-of-sequence token, in order."""
    samples = [row["samples"][0] for row in rows_of_parts(folder / "evaluation/generations")]
    return [sample["ids"][:-1] if sample["ending"] == "eos" else sample["ids"] for sample in samples]


def pairs(run_dir: Path, index: int) -> list[dict[str, Any]]:
    return rows_of_parts(run_dir / f"rounds/{index:03d}/pairs")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def generations(run_dir: Path, index: int) -> list[dict[str, Any]]:
    return rows_of_parts(run_dir / f"rounds/{index:03d}/generations")


def rows_of_parts(folder: Path) -> list[dict[str, Any]]:
    """Rows of a committed piece, as anybody reads them."""
    parts = sorted(folder.glob("part-*.arrow"))
    return [row for part in parts for row in pa.ipc.open_file(part).read_all().to_pylist()]
