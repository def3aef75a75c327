"""Which requests a generator takes, and what its answers are stamped with."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from raydpo.errors import ConfigError, WorkerError
from raydpo.generate import EngineSpec, Generator, Health, PolicyLoaded
from raydpo.generate.engine import streaming
from raydpo.generate.transformers_engine import TransformersEngine
from raydpo.schema.pulse import listen
from raydpo.schema.samples import Generate, Generated, LoadFolder, LoadWeights, Sample, Sampling, Score, Scored

SAMPLING = Sampling(num_answers=2, max_new_tokens=4)
SCORE = Score(sequences=(((0, 5), (6, 7)),))


def ask(version: int) -> Generate:
    return Generate(prompts=((0, 65), (0, 66)), sampling=SAMPLING, seed=3, version=version)


def test_answers_carry_the_version_that_gave_them(old: Path, new: Path) -> None:
    generator = Generator(EngineSpec(str(old), version=4))
    first = generator(ask(4))
    assert isinstance(first, Generated)
    assert first.version == 4
    assert first.busy_s > 0
    assert first.num_tokens == sum(len(sample.ids) for samples in first.answers for sample in samples)
    assert first.num_steps == max(len(sample.ids) for samples in first.answers for sample in samples), "one batch"
    assert [len(samples) for samples in first.answers] == [2, 2]
    scored = generator(SCORE)
    assert isinstance(scored, Scored)
    assert scored.version == 4
    assert len(scored.nats[0]) == len(scored.top_ids[0]) == len(scored.top_nats[0]) == 2

    loaded = generator(LoadFolder(str(new), version=5))
    assert isinstance(loaded, PolicyLoaded)
    assert (loaded.version, loaded.is_whole) == (5, True)
    second = generator(ask(5))
    assert isinstance(second, Generated)
    assert second.version == 5
    assert second.answers != first.answers


class Streaming(TransformersEngine):
    """One that says that it could."""

    has_room = True

    def begin(self, number: int, prompts: Any, sampling: Sampling, seed: int) -> None:
        raise NotImplementedError

    def step(self) -> list[Any]:
        raise NotImplementedError


class Changed(Streaming):
    def generate(self, prompts: Any, sampling: Sampling, seed: int) -> list[list[Sample]]:
        return super().generate(prompts, sampling, seed)[::-1]


class ChangedBoth(Changed):
    def begin(self, number: int, prompts: Any, sampling: Sampling, seed: int) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(TransformersEngine, False), (Streaming, True), (Changed, False), (ChangedBoth, True)],
)
def test_a_way_to_sample_that_was_changed_is_not_passed_by(old: Path, kind: Any, expected: bool) -> None:
    engine = kind(EngineSpec(str(old)))
    assert (streaming(engine) is engine) == expected


def test_tokens_and_batches_are_signs_of_life(old: Path) -> None:
    generator, beats = Generator(EngineSpec(str(old), version=4)), []
    before = listen(lambda: beats.append(1))
    try:
        answer = generator(ask(4))
        assert isinstance(answer, Generated)
        longest = max(len(sample.ids) for samples in answer.answers for sample in samples)
        assert len(beats) >= longest > 0
        beats.clear()
        generator(SCORE)
        assert beats
    finally:
        listen(before)


def test_another_version_than_the_one_loaded_is_refused(old: Path) -> None:
    generator = Generator(EngineSpec(str(old), version=4))
    with pytest.raises(WorkerError, match=r"version 5 .* version 4"):
        generator(ask(5))


def test_between_two_parts_there_is_no_policy(old: Path, new: Path) -> None:
    generator = Generator(EngineSpec(str(old)))
    items = list(load_file(new / "model.safetensors").items())
    half = LoadWeights(dict(items[:4]), version=1, is_last=False)
    loaded = generator(half)
    assert isinstance(loaded, PolicyLoaded)
    assert (loaded.version, loaded.is_whole) == (1, False)
    for request in (ask(0), ask(1), SCORE):
        with pytest.raises(WorkerError, match="parts of version 1 are still to come"):
            generator(request)
    with pytest.raises(WorkerError, match=r"version 2 .* version 1"):
        generator(LoadWeights(dict(items[4:]), version=2, is_last=True))
    generator(LoadWeights(dict(items[4:]), version=1, is_last=True))
    ours, fresh = generator(ask(1)), Generator(EngineSpec(str(new), version=1))(ask(1))
    assert isinstance(ours, Generated)
    assert isinstance(fresh, Generated)
    assert ours.answers == fresh.answers


def test_a_generator_whose_loading_failed_gives_nothing_until_a_whole_policy_came(old: Path, new: Path) -> None:
    generator = Generator(EngineSpec(str(old)))
    items = list(load_file(new / "model.safetensors").items())
    with pytest.raises(WorkerError, match="came in no part"):
        generator(LoadWeights(dict(items[1:]), version=1, is_last=True))
    with pytest.raises(WorkerError, match="a load failed"):
        generator(ask(1))
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        generator(LoadFolder(str(new.parent / "absent"), version=1))
    generator(LoadFolder(str(old), version=1))
    assert isinstance(generator(ask(1)), Generated)


def test_a_generator_says_how_it_computes_whatever_it_holds(old: Path, new: Path) -> None:
    generator = Generator(EngineSpec(str(old), threads=1))
    found = generator(Health())
    assert isinstance(found, dict)
    assert [found[key] for key in ("engine", "device", "dtype", "threads")] == ["transformers", "cpu", "float32", 1]
    half = dict(list(load_file(new / "model.safetensors").items())[:4])
    generator(LoadWeights(half, version=1, is_last=False))
    assert isinstance(generator(Health()), dict)
