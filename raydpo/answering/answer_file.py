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

from raydpo.answering.open_model import open_model
from raydpo.data.prompts import read_prompts
from raydpo.rundir.rounds_folder import chunks, seed_of

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


def answer_file(asked: AnswerRequest, out: TextIO, tell: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Write {"prompt", "answers": [{"text", "ending", "tokens"}]} lines to `out`: number of prompts.

    tell: is called with prompts done and in all. Raises DataError with all that is wrong with the prompts.
    """
    with open_model(asked.model, engine=asked.engine, use_gpu=asked.use_gpu) as model:
        sampling = model.sampling(asked.num_answers, asked.temperature, asked.max_new_tokens)
        most = sys.maxsize if model.num_positions is None else model.num_positions - sampling.max_new_tokens + 1
        prompts, _ = read_prompts(
            "PROMPTS", asked.prompts, model.tokenizer, max_length=most, control_tokens="plain", max_bad_fraction=0.0
        )
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
