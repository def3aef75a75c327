"""What a vLLM generator is asked in one process of its own; the answers go to a JSON file. Run by test_vllm_engine."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from raydpo.errors import RaydpoError
from raydpo.generate import EngineSpec, Generator
from raydpo.generate.mapped_weights import handed_over
from raydpo.schema.pulse import listen
from raydpo.schema.samples import Generate, Generated, LoadFolder, LoadWeights, Sampling, Score, Scored, TakeWeights
from tests.generate.adapter_alone import pushed_adapter
from tests.generate.conftest import POSITIONS, PROMPTS

GREEDY = Sampling(num_answers=2, max_new_tokens=12, greedy=True)
FEW = Sampling(num_answers=3, max_new_tokens=10, temperature=0.8, top_p=0.95)
SEQUENCES = (
    ((0, 65, 66), (5, 6, 7)),
    ((0,), (9,)),
    ((0, 1, 2, 3), ()),
    ((0, 8), tuple(range(20, 20 + POSITIONS - 2))),
)
FIRST = (0, 70, 71, 72, 73, 74, 75)


STREAM = tuple(
    Generate(PROMPTS[start : start + 2], Sampling(2, tokens), seed, 1)
    for seed, (start, tokens) in enumerate([(0, 30), (2, 3), (4, 9)])
)


def stream(generator: Generator, refused: Any) -> Any:
    """Three requests at a time, the longest first: what each gave and in which order, and what each gives alone."""
    alone = [generator(request) for request in STREAM]
    assert generator.takes_several
    for number, request in enumerate(STREAM):
        generator.take(number, request)
    assert generator.ended(may_come_more=True) == [], "the engine has room for more, and did no step for the others"
    in_work = refused(LoadFolder("nowhere", version=2))
    together = []
    while len(together) < len(STREAM):
        together += generator.ended(may_come_more=False)
    assert generator.ended(may_come_more=False) == []
    generator.take(7, Score(SEQUENCES))
    ((scored, _),) = generator.ended(may_come_more=False)
    return {
        "order": [number for number, _ in together],
        "same": [answer.answers == alone[number].answers for number, answer in together],
        "steps": [answer.num_steps for _, answer in together],
        "steps_alone": [answer.num_steps for answer in alone],
        "tokens": [answer.num_tokens for answer in alone],
        "version": [answer.version for _, answer in together],
        "busy_s": [answer.busy_s for _, answer in together],
        "in_work": in_work,
        "scored": scored,
    }


def main(old: str, new: str, odd: str, stop: str, out: str) -> None:
    generator = Generator(EngineSpec(old, engine="vllm", version=1))
    found: dict[str, Any] = {}

    def generate(sampling: Sampling, version: int, seed: int = 7, prompts: Any = PROMPTS) -> Any:
        answer = generator(Generate(prompts=prompts, sampling=sampling, seed=seed, version=version))
        assert isinstance(answer, Generated)
        assert answer.version == version
        return [[asdict(sample) for sample in samples] for samples in answer.answers]

    def score() -> Any:
        answer = generator(Score(SEQUENCES))
        assert isinstance(answer, Scored)
        return asdict(answer)

    def refused(request: Any) -> str:
        try:
            generator(request)
        except RaydpoError as error:
            return f"{type(error).__name__}: {error}"
        return ""

    beats: list[int] = []
    listen(lambda: beats.append(1))
    found["old_greedy"], found["old_score"] = generate(GREEDY, 1), score()
    listen(None)
    found["beats"] = len(beats)
    found["samples"], found["samples_again"] = generate(FEW, 1), generate(FEW, 1)
    found["samples_of_another_seed"] = generate(FEW, 1, seed=8)
    found["stopped"] = generate(Sampling(num_answers=1, max_new_tokens=12, greedy=True, stop=(stop,)), 1)
    found["first_tokens"] = generate(Sampling(1000, 1, temperature=0.7), 1, prompts=(FIRST,))
    found["hot_tokens"] = generate(Sampling(1000, 1, temperature=2.0), 1, prompts=(FIRST,))
    found["nucleus_tokens"] = generate(Sampling(1000, 1, top_p=0.5), 1, prompts=(FIRST,))
    found["too_hot"] = refused(Generate(PROMPTS, Sampling(1, 1, temperature=2.5), 7, 1))
    many = tuple(
        (0, *(5 + (row + place) % 200 for place in range(39))) for row in range(260)
    )  # more than PREFILL_TOKENS
    found["many"] = generate(Sampling(1, 2), 1, prompts=many)
    found["too_long"] = refused(Generate(((0,) * 40,), FEW, 7, 1))

    found["stream"] = stream(generator, refused)
    weights = list(load_file(Path(new) / "model.safetensors").items())
    found["wrong_name"] = refused(LoadWeights({"model.norm.bias": weights[0][1]}, version=2, is_last=False))
    found["between"] = []
    for start in range(0, len(weights), 5):
        is_last = start + 5 >= len(weights)
        generator(LoadWeights(dict(weights[start : start + 5]), version=2, is_last=is_last))
        if not is_last:
            found["between"].append(refused(Generate(PROMPTS, GREEDY, 7, 2)))
    found["new_greedy"], found["new_score"] = generate(GREEDY, 2), score()
    found["new_samples"] = generate(FEW, 2)

    generator(LoadFolder(old, version=3))
    found["old_greedy_again"], found["samples_of_the_old_again"] = generate(GREEDY, 3), generate(FEW, 3)
    found["missing"] = refused(LoadWeights(dict(weights[1:]), version=4, is_last=True))
    generator(LoadFolder(new, version=4))
    found["new_greedy_again"] = generate(GREEDY, 4)
    with handed_over(load_file(Path(old) / "model.safetensors")) as shared:
        generator(TakeWeights(shared, version=5))
        found["old_greedy_taken"], found["samples_of_the_old_taken"] = generate(GREEDY, 5), generate(FEW, 5)
        found["busy"] = refused_while_busy(generator, lambda: refused(TakeWeights(shared, version=6)))
        found["after_busy"] = refused(Generate(PROMPTS, GREEDY, 7, 6))
    generator(LoadFolder(new, version=7))
    found["new_greedy_after_busy"] = generate(GREEDY, 7)
    found["health"] = generator.engine.health()
    with pushed_adapter(Path(old), 3) as shared:
        generator(TakeWeights(shared, version=8))
        found["adapted_greedy"], found["adapted_score"] = generate(GREEDY, 8), score()
    sockets = psutil.Process().net_connections("inet")
    found["listens_at"] = [socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN]
    try:
        Generator(EngineSpec(odd, engine="vllm"))
    except RaydpoError as error:
        found["odd"] = f"{type(error).__name__}: {error}"
    Path(out).write_text(json.dumps(found))


def refused_while_busy(generator: Generator, ask: Callable[[], str]) -> str:
    """What is said while vLLM has a request in work, which is ended then."""
    from vllm import SamplingParams

    engine: Any = generator.engine._llm.llm_engine  # type: ignore[attr-defined]
    engine.add_request("busy", {"prompt_token_ids": [0, 5, 6]}, SamplingParams(max_tokens=20, ignore_eos=True))
    engine.step()
    said = ask()
    engine.abort_request(["busy"])
    while engine.has_unfinished_requests():
        engine.step()
    return said


if __name__ == "__main__":
    main(*sys.argv[1:])
