"""A model that answers in this process, with prompts written and tokenised as its training reads them.

Comes in: a model folder, hub id, adapter, or the directory of a run. Goes out: answers. Decision: the engine of rounds samples,
so that what is seen here is what a round would see; without Ray and without actors, the price is one device.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from raydpo.data.bad_rows import BadRow
from raydpo.data.encode import encode
from raydpo.data.ends_said import ends_said
from raydpo.data.messages import Example, Message
from raydpo.data.row_ends import decided
from raydpo.data.template import open_tokenizer, render_prompt
from raydpo.data.tokenizer import TextTokenizer
from raydpo.errors import ConfigError, DataError
from raydpo.generate.engine import Engine, EngineSpec
from raydpo.generate.make_engine import make_engine
from raydpo.models.resolve import ResolvedModel, resolve_model
from raydpo.rundir.published import published_model
from raydpo.schema.samples import Sample, Sampling

USUAL_TOKENS = 256
"""Of an answer, at most."""


@dataclass(frozen=True)
class OpenModel:
    """A model in memory. name: as it was asked for. num_positions: tokens of a prompt with its answer; None: no limit."""

    name: str
    tokenizer: TextTokenizer
    engine: Engine
    num_positions: int | None

    def sampling(self, num_answers: int, temperature: float, max_new_tokens: int | None) -> Sampling:
        """How to sample. temperature: 0 for the likeliest token each time. max_new_tokens: None for 256, or half of the
        positions where these are few. Raises ConfigError where no token of a prompt would fit beside the answer."""
        positions = self.num_positions
        most = max_new_tokens or (USUAL_TOKENS if positions is None else min(USUAL_TOKENS, positions // 2))
        if positions is not None and most >= positions:
            raise ConfigError(
                f"--max-new-tokens {most} leaves no room for a prompt in the {positions} positions of {self.name}. Nothing was "
                "answered. Lower it."
            )
        return Sampling(num_answers, most, temperature or 1.0, greedy=not temperature)

    def ids_of(self, turns: Sequence[Message], max_new_tokens: int) -> tuple[int, ...]:
        """A conversation as the prompt of its next answer; without a chat template, its last turn's text alone.

        Raises DataError for one that cannot be written, or that leaves no room for `max_new_tokens`.
        """
        prompt = list(turns) if self.tokenizer.has_template else str(turns[-1]["content"])
        room = 10**9 if self.num_positions is None else self.num_positions - max_new_tokens + 1
        try:
            text = render_prompt(Example(prompt, []), self.tokenizer, "plain")
            (found,) = encode(self.tokenizer, [text], max_length=room, overlong="drop")
            if isinstance(found, BadRow):
                raise found
        except BadRow as bad:
            raise DataError(f"{self.name} cannot be asked this: {bad.reason}: {bad.detail}") from bad
        return tuple(found.prompt_ids)

    def answers(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[list[Sample]]:
        """`sampling.num_answers` answers to each prompt of ids."""
        return self.engine.generate(prompts, sampling, seed)


@contextmanager
def open_model(
    name: str, *, engine: str = "transformers", threads: int = 0, use_gpu: bool = False
) -> Iterator[OpenModel]:
    """The model `name`. threads: of this process; 0: as many as there are CPUs. Raises ConfigError where it cannot be found or
    loaded."""
    import os

    found = resolve_model("MODEL", str(published_model(Path(name)) or name))
    with tempfile.TemporaryDirectory() as scratch:
        folder = found.folder if found.base is None else _merged(found, Path(scratch) / "merged")
        tokenizer = open_tokenizer(str(folder), None)
        tokenizer.ends = decided(tokenizer, "auto", "auto", tuple(reversed(found.folders)))
        spec = EngineSpec(
            model=str(folder),
            engine=engine,
            dtype="bfloat16" if use_gpu else "float32",
            use_gpu=use_gpu,
            threads=threads or os.cpu_count() or 1,
            takes_weights=False,
            end_ids=ends_said(tokenizer).ids,
        )
        made = make_engine(spec)
        yield OpenModel(name, tokenizer, made, made.health().get("num_positions"))


def _merged(found: ResolvedModel, folder: Path) -> Path:
    from raydpo.models.merging import write_merged

    write_merged(found, folder, "float32")
    return folder
