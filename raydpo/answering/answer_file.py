"""`raydpo generate`: answers of a model to prompts, as JSON lines.

Comes in: files of prompts, read as rounds read them. Goes out: a line a prompt, in their order, written as its batch is done.
Decision: a batch has a seed of its own, so that answers to the first prompts stay when more are added.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from raydpo.answering.open_model import OpenModel, open_model
from raydpo.data.prompts import read_prompts
from raydpo.errors import DataError
from raydpo.judge.verdict import Row
from raydpo.rundir.rounds_folder import chunks, seed_of
from raydpo.schema.samples import Prompt, Sampling

PROMPTS_A_BATCH = 16


@dataclass(frozen=True)
class AnswerRequest:
    """What is asked of a model. prompts: files, folders, globs or hub data sets. Others: as in `OpenModel.sampling`."""

    model: str
    prompts: Sequence[str]
    num_answers: int = 1
    temperature: float = 0.0
    max_new_tokens: int | None = None
    seed: int = 0
    engine: str = "transformers"
    use_gpu: bool = False


def greedy_answers(
    names: Sequence[str], sources: Sequence[str], max_new_tokens: int | None, *, use_gpu: bool = False
) -> list[Row]:
    """Each prompt of `sources` with the likeliest answer of each model, as a judge reads them; one model in memory at a time.

    The first model's tokenizer and template write the prompts down. Raises DataError where another one reads other prompts.
    """
    texts: list[str] = []
    answers: list[list[str]] = []
    for name in names:
        with open_model(name, use_gpu=use_gpu) as model:
            sampling = model.sampling(1, 0.0, max_new_tokens)
            prompts = _prompts(model, sources, sampling)
            if texts and [prompt.text for prompt in prompts] != texts:
                raise DataError(f"{name} reads other prompts than {names[0]}: some are too long for one of the two")
            texts = [prompt.text for prompt in prompts]
            lots = chunks(prompts, PROMPTS_A_BATCH)
            answers.append(
                [one.text for lot in lots for (one,) in model.answers([each.ids for each in lot], sampling, 0)]
            )
    return [(text, list(said)) for text, *said in zip(texts, *answers, strict=True)]


def _prompts(model: OpenModel, sources: Sequence[str], sampling: Sampling) -> list[Prompt]:
    """Prompts that leave room for the longest answer."""
    most = sys.maxsize if model.num_positions is None else model.num_positions - sampling.max_new_tokens + 1
    found, _ = read_prompts(
        "PROMPTS", sources, model.tokenizer, max_length=most, control_tokens="plain", max_bad_fraction=0.0
    )
    return found


def answer_file(asked: AnswerRequest, out: TextIO, tell: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Write {"prompt", "answers": [{"text", "ending", "tokens"}]} lines to `out`: number of prompts.

    tell: is called with prompts done and in all. Raises DataError with all that is wrong with the prompts.
    """
    with open_model(asked.model, engine=asked.engine, use_gpu=asked.use_gpu) as model:
        sampling = model.sampling(asked.num_answers, asked.temperature, asked.max_new_tokens)
        prompts = _prompts(model, asked.prompts, sampling)
        done = 0
        for number, lot in enumerate(chunks(prompts, PROMPTS_A_BATCH)):
            seed = seed_of(asked.seed, "generate", number)
            for prompt, samples in zip(lot, model.answers([each.ids for each in lot], sampling, seed), strict=True):
                answers = [{"text": each.text, "ending": each.ending, "tokens": len(each.ids)} for each in samples]
                out.write(
                    json.dumps({"prompt": prompt.record["prompt"], "answers": answers}, ensure_ascii=False) + "\n"
                )
            out.flush()
            done += len(lot)
            tell(done, len(prompts))
    return done
