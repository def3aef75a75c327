"""An engine stops at the ends that training teaches, beside those that the model's files name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raydpo.generate.engine import EngineSpec
from raydpo.generate.make_engine import make_engine
from raydpo.schema.samples import Sampling
from tests.generate.conftest import PROMPTS, random_model

GREEDY = Sampling(num_answers=1, max_new_tokens=8, greedy=True)


def test_an_answer_ends_at_a_token_that_was_taught(tmp_path: Path) -> None:
    spec = EngineSpec(str(random_model(tmp_path, seed=3)))
    free = [found[0] for found in make_engine(spec).generate(PROMPTS, GREEDY, 0)]
    taught = next(sample.ids[2] for sample in free if len(sample.ids) > 3 and sample.ids[2] not in sample.ids[:2])
    ended = [found[0] for found in make_engine(replace(spec, end_ids=(taught,))).generate(PROMPTS, GREEDY, 0)]
    assert any(sample.ids != before.ids for sample, before in zip(ended, free, strict=True))
    for sample, before in zip(ended, free, strict=True):
        expected = before.ids[: before.ids.index(taught) + 1] if taught in before.ids else before.ids
        assert sample.ids == expected
        assert sample.ending == ("eos" if taught in before.ids else before.ending)
