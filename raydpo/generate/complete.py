"""Conversations in, replies out: an engine as a language model that is asked questions, such as a judge's.

Decision: replies are greedy, so that the same question gets the same answer; a question that is too long costs only
itself, its error stands in place of its reply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from raydpo.errors import DataError
from raydpo.generate.engine import Engine, EngineSpec
from raydpo.generate.make_engine import make_engine
from raydpo.models.pretrained import load_tokenizer
from raydpo.models.quoted_text import quoted
from raydpo.schema.samples import Sample, Sampling

Messages = list[dict[str, str]]


def local_completer(spec: EngineSpec, max_tokens: int = 512) -> Callable[[Sequence[Messages]], list[str | Exception]]:
    """Load the model of `spec`; the function returned answers conversations, in order, in at most `max_tokens` tokens each.

    They are written with the tokenizer's chat template; without one, contents stand one below the other. Control tokens that
    contents spell are read as text.
    """
    engine, tokenizer = make_engine(replace(spec, takes_weights=False)), load_tokenizer(Path(spec.model))
    sampling = Sampling(1, max_tokens, greedy=True)

    def ids_of(turns: Messages) -> list[int]:
        turns = [{**turn, "content": quoted(tokenizer, turn["content"])} for turn in turns]
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer("\n\n".join(turn["content"] for turn in turns))["input_ids"]
        return ids

    def complete(conversations: Sequence[Messages]) -> list[str | Exception]:
        prompts = [ids_of(turns) for turns in conversations]
        try:
            return _replies(engine, prompts, sampling)
        except DataError:
            return [_reply(engine, prompt, sampling) for prompt in prompts]

    return complete


def _replies(engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[str | Exception]:
    return [_whole(samples[0], sampling) for samples in engine.generate(prompts, sampling, seed=0)]


def _whole(sample: Sample, sampling: Sampling) -> str | Exception:
    if sample.ending == "length":
        return DataError(
            f"the reply was cut after judge.max_tokens = {sampling.max_new_tokens} tokens, so its last line is no verdict. "
            "Raise judge.max_tokens, or ask for short explanations in judge.instruction."
        )
    return sample.text


def _reply(engine: Engine, prompt: Sequence[int], sampling: Sampling) -> str | Exception:
    try:
        return _replies(engine, [prompt], sampling)[0]
    except DataError as error:
        return error
