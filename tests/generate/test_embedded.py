"""The transformers engine against plain forwards, its own repetitions, and an engine started from the new weights."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from raydpo.errors import ConfigError, DataError, WorkerError
from raydpo.generate.engine import EngineSpec
from raydpo.generate.greedy import greedy
from raydpo.generate.make_engine import make_engine
from raydpo.generate.transformers_engine import TransformersEngine
from raydpo.models.pretrained import load_tokenizer
from raydpo.schema.samples import Sample, Sampling
from tests.generate.conftest import POSITIONS, PROMPTS, VOCABULARY, change_generation, stop_text

FEW = Sampling(num_answers=3, max_new_tokens=10, temperature=0.8, top_p=0.95)
GREEDY = Sampling(num_answers=1, max_new_tokens=12, greedy=True)


@pytest.fixture(scope="module")
def engine(old: Path) -> TransformersEngine:
    return TransformersEngine(EngineSpec(str(old)))


def ids_of(answers: list[list[Sample]]) -> list[list[list[int]]]:
    return [[list(sample.ids) for sample in samples] for samples in answers]


def next_probabilities(folder: Path, prompt: tuple[int, ...], temperature: float = 1.0) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return (model(input_ids=torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)


def chi_square(counts: torch.Tensor, probabilities: torch.Tensor) -> tuple[float, int]:
    """Statistic and degrees of freedom; tokens that are expected fewer than five times count as one."""
    expected = probabilities.double() * counts.sum()
    often = expected >= 5
    pooled = torch.stack([expected[~often].sum(), counts[~often].sum().double()])
    pairs = torch.stack([expected[often], counts[often].double()])
    value = float(((pairs[1] - pairs[0]) ** 2 / pairs[0]).sum() + (pooled[1] - pooled[0]) ** 2 / pooled[0])
    return value, int(often.sum())


SCRIPT = """
import json, sys
from raydpo.generate.engine import EngineSpec
from raydpo.generate.make_engine import make_engine
from raydpo.schema.samples import Sampling
engine = make_engine(EngineSpec(sys.argv[1]))
answers = engine.generate(json.loads(sys.argv[2]), Sampling(3, 10, temperature=0.8, top_p=0.95), 17)
print(json.dumps([[list(sample.ids) for sample in samples] for samples in answers]))
"""


@pytest.mark.slow
def test_a_request_has_one_answer_whoever_is_asked_and_whenever(engine: TransformersEngine, old: Path) -> None:
    first = engine.generate(PROMPTS, FEW, seed=17)
    engine.generate(PROMPTS[:2], FEW, seed=3)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert engine.generate(PROMPTS, FEW, seed=17) == first
    assert torch.equal(torch.get_rng_state(), state)
    command = [sys.executable, "-c", SCRIPT, str(old), json.dumps(PROMPTS)]
    fresh = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(fresh.stdout.splitlines()[-1]) == ids_of(first)


def test_another_seed_gives_other_answers_and_answers_differ(engine: TransformersEngine) -> None:
    first, second = engine.generate(PROMPTS, FEW, seed=1), engine.generate(PROMPTS, FEW, seed=2)
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert all(len({sample.ids for sample in samples}) == 3 for samples in first)
    assert first[0] != first[5], "the same prompt twice in a request"


def test_greedy_is_greedy(engine: TransformersEngine, old: Path) -> None:
    answers = engine.generate(PROMPTS, Sampling(num_answers=2, max_new_tokens=12, greedy=True), seed=0)
    assert [[list(s.ids[:-1] if s.ending == "eos" else s.ids) for s in samples] for samples in answers] == [
        [ids, ids] for ids in greedy(old, PROMPTS, 12)
    ]


def test_small_batches_sample_from_the_same_distribution_and_greedy_from_the_same_tokens(
    engine: TransformersEngine, old: Path
) -> None:
    small = TransformersEngine(EngineSpec(str(old), tokens_per_batch=40))
    assert small.generate(PROMPTS, GREEDY, seed=0) == engine.generate(PROMPTS, GREEDY, seed=0)
    assert small.generate(PROMPTS, FEW, seed=17) == small.generate(PROMPTS, FEW, seed=17)


def test_first_tokens_have_the_frequencies_of_the_tempered_softmax(engine: TransformersEngine, old: Path) -> None:
    sampling = Sampling(num_answers=4000, max_new_tokens=1, temperature=0.7)
    (samples,) = engine.generate([PROMPTS[2]], sampling, seed=11)
    counts = torch.bincount(torch.tensor([sample.ids[0] for sample in samples]), minlength=VOCABULARY)
    value, freedom = chi_square(counts, next_probabilities(old, PROMPTS[2], 0.7))
    limit = freedom + 4 * (2 * freedom) ** 0.5
    assert freedom > 10
    assert value < limit
    for temperature in (0.6, 0.8):
        assert chi_square(counts, next_probabilities(old, PROMPTS[2], temperature))[0] > 2 * limit


def test_top_p_cuts_the_unlikely_tokens_and_nothing_else(engine: TransformersEngine, old: Path) -> None:
    probabilities = next_probabilities(old, PROMPTS[3]).sort(descending=True)
    before = probabilities.values.cumsum(0) - probabilities.values
    kept = set(probabilities.indices[before < 0.5].tolist())
    (samples,) = engine.generate([PROMPTS[3]], Sampling(2000, 1, top_p=0.5), seed=2)
    assert len(kept) > 2
    assert {sample.ids[0] for sample in samples} == kept


def test_all_tokens_may_be_sampled(engine: TransformersEngine, old: Path) -> None:
    """transformers samples among 50 tokens unless it is told not to."""
    (samples,) = engine.generate([(0,)], Sampling(4000, 1, temperature=8.0), seed=2)
    assert len({sample.ids[0] for sample in samples}) > 200


def test_ids_are_those_that_were_sampled(engine: TransformersEngine, old: Path) -> None:
    tokenizer = load_tokenizer(old)
    samples = [sample for group in engine.generate(PROMPTS, FEW, seed=17) for sample in group]
    assert all(sample.text == tokenizer.decode(sample.ids, skip_special_tokens=True) for sample in samples)
    again = [tuple(tokenizer(sample.text, add_special_tokens=False)["input_ids"]) for sample in samples]
    assert any(sample.ids != ids for sample, ids in zip(samples, again, strict=True)), "or this test tests nothing"


def test_an_answer_ends_with_the_end_token_of_the_folder(engine: TransformersEngine, old: Path, tmp_path: Path) -> None:
    whole = [samples[0].ids for samples in engine.generate(PROMPTS, GREEDY, seed=0)]
    ends = [whole[0][4], whole[2][0]]
    ending = make_engine(EngineSpec(str(change_generation(shutil.copytree(old, tmp_path / "m"), eos_token_id=ends))))
    for samples, ids in zip(ending.generate(PROMPTS, GREEDY, seed=0), whole, strict=True):
        found = [place for place, token in enumerate(ids) if token in ends]
        assert samples[0].ids == (ids[: found[0] + 1] if found else ids)
        assert samples[0].ending == ("eos" if found else "length")
    assert len(ending.generate(PROMPTS, GREEDY, seed=0)[2][0].ids) == 1


def test_a_stop_text_ends_an_answer_and_stays_in_it(engine: TransformersEngine, old: Path) -> None:
    whole = [samples[0] for samples in engine.generate(PROMPTS, GREEDY, seed=0)]
    stop = stop_text(whole[0].ids, load_tokenizer(old))
    sampling = Sampling(num_answers=1, max_new_tokens=12, greedy=True, stop=(stop, "never said"))
    answers = [samples[0] for samples in engine.generate(PROMPTS, sampling, seed=0)]
    assert answers[0].ending == "stop"
    assert 3 <= len(answers[0].ids) < 12
    for answer, without in zip(answers, whole, strict=True):
        assert answer.ids == without.ids[: len(answer.ids)]
        assert (answer.ending == "stop") == (stop in without.text)
        assert (stop in answer.text) == (stop in without.text)


def test_a_stop_text_of_the_prompt_ends_nothing(engine: TransformersEngine, old: Path) -> None:
    stop = load_tokenizer(old).decode(PROMPTS[0])
    (samples,) = engine.generate(PROMPTS[:1], Sampling(1, 4, greedy=True, stop=(stop[-1],)), seed=0)
    assert (samples[0].ending == "stop") == (stop[-1] in samples[0].text)
    assert len(samples[0].ids) > 0


def test_sampling_settings_of_the_folder_do_not_count(engine: TransformersEngine, old: Path, tmp_path: Path) -> None:
    settings = {"do_sample": True, "temperature": 5.0, "top_k": 2, "repetition_penalty": 9.0, "max_length": 3}
    leaky = make_engine(EngineSpec(str(change_generation(shutil.copytree(old, tmp_path / "m"), **settings))))
    assert leaky.generate(PROMPTS, FEW, seed=17) == engine.generate(PROMPTS, FEW, seed=17)
    assert leaky.generate(PROMPTS, GREEDY, seed=0) == engine.generate(PROMPTS, GREEDY, seed=0)


def test_scores_are_those_of_a_plain_forward(engine: TransformersEngine, old: Path) -> None:
    sequences = [
        ((0, 65, 66), (5, 6, 7)),
        ((0,), (9,)),
        ((0, 1, 2, 3), ()),
        ((0, 8), tuple(range(20, 20 + POSITIONS - 2))),
    ]
    nats, top_ids, top_nats = engine.score(sequences)
    model = AutoModelForCausalLM.from_pretrained(old, dtype=torch.float32).eval()
    for (prompt, answer), ours, ids, tops in zip(sequences, nats, top_ids, top_nats, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)
        assert len(ours) == len(ids) == len(tops) == len(answer)
        assert ours == pytest.approx([float(expected[place, token]) for place, token in enumerate(answer)], abs=1e-4)
        assert ids == tuple(expected.argmax(-1).tolist())
        assert tops == pytest.approx(expected.max(-1).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_new_weights_in_parts_give_the_answers_of_the_new_model(old: Path, new: Path, dtype: str) -> None:
    changing = make_engine(EngineSpec(str(old), dtype=dtype))  # type: ignore[arg-type]
    fresh = make_engine(EngineSpec(str(new), dtype=dtype))  # type: ignore[arg-type]
    before = changing.generate(PROMPTS, FEW, seed=5)
    weights = list(load_file(new / "model.safetensors").items())
    for start in range(0, len(weights), 5):
        changing.load_weights(dict(weights[start : start + 5]))
    changing.finish_loading()
    assert changing.generate(PROMPTS, FEW, seed=5) == fresh.generate(PROMPTS, FEW, seed=5) != before
    assert changing.health()["probe_nats"] == fresh.health()["probe_nats"]
    changing.load_folder(str(old))
    assert changing.generate(PROMPTS, FEW, seed=5) == before


def test_a_tied_weight_may_come_under_either_name(old: Path, new: Path) -> None:
    changing = make_engine(EngineSpec(str(old)))
    weights = load_file(new / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    changing.load_weights(weights)
    changing.finish_loading()
    assert changing.generate(PROMPTS, GREEDY, 0) == make_engine(EngineSpec(str(new))).generate(PROMPTS, GREEDY, 0)


def test_weights_that_do_not_fit_are_named_and_nothing_is_taken(old: Path, new: Path, tmp_path: Path) -> None:
    changing = make_engine(EngineSpec(str(old)))
    before = changing.generate(PROMPTS, FEW, seed=5)
    weights = load_file(new / "model.safetensors")
    wrong = {**weights, "model.norm.bias": torch.zeros(64), "model.norm.weight": torch.zeros(3)}
    with pytest.raises(WorkerError, match=r"model.norm.weight \(shape \[3\].*\[64\]\), model.norm.bias \(not in"):
        changing.load_weights(wrong)
    assert changing.generate(PROMPTS, FEW, seed=5) == before
    changing.load_weights({name: weight for name, weight in weights.items() if name != "model.norm.weight"})
    with pytest.raises(WorkerError, match=r"model\.norm\.weight came in no part"):
        changing.finish_loading()
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        changing.load_folder(str(tmp_path))


def test_what_the_model_cannot_read_is_named(engine: TransformersEngine, old: Path) -> None:
    with pytest.raises(DataError) as raised:
        engine.generate([(0, 1), (), (0, VOCABULARY), (0,) * (POSITIONS - 9)], FEW, seed=0)
    assert [problem.split(" h")[0] for problem in raised.value.problems] == ["Prompt 1", "Prompt 2", "Prompt 3"]
    with pytest.raises(DataError) as raised:
        engine.score([((0,), (1,)), ((), (1,)), ((0,), (-1,)), ((0,), (1,) * POSITIONS)])
    assert [problem.split(" h")[0] for problem in raised.value.problems] == ["Sequence 1", "Sequence 2", "Sequence 3"]
    short = make_engine(EngineSpec(str(old), max_length=20))
    with pytest.raises(DataError, match="20 positions"):
        short.generate([(0,) * 11], FEW, seed=0)
