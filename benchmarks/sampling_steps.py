"""`python -m benchmarks.sampling_steps`: steps of vLLM's engine for one round of prompts, three ways in turn.

raw: AsyncLLM by hand, all prompts at once. stream: a generator of a pool, requests of 32 prompts, as rounds sample. blocking:
the same requests one after the other. All have the same engine arguments, parameters and seeds, and a tiny model of random
weights whose answers end by chance, so that lengths are mixed. Prints the figures and writes one JSON file, named by hardware
and date.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.made import RESULTS, cpu_cores, save
from raydpo import runtime
from raydpo.config.vllm_section import VllmSection
from raydpo.generate.engine import EngineSpec
from raydpo.generate.worker import Generator
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from raydpo.schema.samples import Generate, Sampling

NUM_PROMPTS, PER_REQUEST, AT_ONCE = 256, 32, 256
VOCABULARY, POSITIONS, MAX_NEW_TOKENS = 270, 256, 160
END_IDS = (5, 6, 7, 8)
"""Of nearly uniform tokens: an answer has 56 on average."""
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 128,
    "max_positions": POSITIONS,
}
SIDES = ("raw", "stream", "blocking")


class CountedForwards:
    """Becomes part of vLLM's worker class: counts the forwards that read or made a token."""

    execute_model: Callable[..., Any]

    def begin_counting(self) -> None:
        """From here on."""
        execute = self.execute_model
        self.num_forwards = 0

        def counted(scheduled: Any, *arguments: Any, **named: Any) -> Any:
            self.num_forwards += scheduled.total_num_scheduled_tokens > 0
            return execute(scheduled, *arguments, **named)

        self.execute_model = counted

    def forwards(self) -> int:
        """So far."""
        return self.num_forwards


class Raw:
    """In the actor: AsyncLLM with the engine arguments of a generator. Called with requests: (steps, ids of every answer)."""

    def __init__(self, spec: EngineSpec) -> None:
        from raydpo.generate.vllm_engine import VllmEngine, engine_arguments

        self._ours = VllmEngine(spec)  # sets the environment; makes the parameters of each prompt
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        arguments = engine_arguments(spec, POSITIONS)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # this process has threads of torch by now
        arguments["worker_extension_cls"] = f"benchmarks.sampling_steps.{CountedForwards.__name__}"
        del arguments["weight_transfer_config"]  # of a backend that only our own extension knows
        self._loop = asyncio.new_event_loop()
        self._llm = self._loop.run_until_complete(self._start(arguments))

    async def _start(self, arguments: dict[str, Any]) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        engine = AsyncEngineArgs(**arguments, disable_log_stats=True)
        llm = AsyncLLM.from_engine_args(engine, usage_context=UsageContext.LLM_CLASS)
        await llm.collective_rpc("begin_counting")
        return llm

    def __call__(self, requests: Sequence[Generate]) -> tuple[int, list[Any]]:
        return self._loop.run_until_complete(self._sample(requests))

    async def _sample(self, requests: Sequence[Generate]) -> tuple[int, list[Any]]:
        await self._llm.reset_prefix_cache()
        (before,) = await self._llm.collective_rpc("forwards")
        answers = await asyncio.gather(*(self._answers(*each) for each in self._prompts(requests)))
        (after,) = await self._llm.collective_rpc("forwards")
        return after - before, list(answers)

    def _prompts(self, requests: Sequence[Generate]) -> Iterator[tuple[str, tuple[int, ...], Any]]:
        from vllm.sampling_params import RequestOutputKind

        for number, request in enumerate(requests):
            admitted = self._ours._admitted(request.prompts, request.sampling, request.seed)
            for place, (prompt, params) in enumerate(zip(request.prompts, admitted, strict=True)):
                params.output_kind = RequestOutputKind.FINAL_ONLY
                yield f"{time.monotonic_ns()}-{number}-{place}", prompt, params

    async def _answers(self, name: str, prompt: tuple[int, ...], params: Any) -> list[tuple[int, ...]]:
        last: Any = None
        async for output in self._llm.generate({"prompt_token_ids": list(prompt)}, params, name):
            last = output
        return [tuple(each.token_ids) for each in sorted(last.outputs, key=lambda output: output.index)]


class Blocking(Generator):
    """A generator that takes one request at a time."""

    takes_several = False


def requests_of(num_answers: int) -> list[Generate]:
    """256 prompts of 4 to 67 ids."""
    sampling = Sampling(num_answers, MAX_NEW_TOKENS)
    prompts = [
        tuple(10 + (7 * row + 13 * place) % (VOCABULARY - 12) for place in range(4 + 37 * row % 64))
        for row in range(NUM_PROMPTS)
    ]
    starts = range(0, NUM_PROMPTS, PER_REQUEST)
    return [Generate(tuple(prompts[start : start + PER_REQUEST]), sampling, start, version=0) for start in starts]


def measured(pools: dict[str, runtime.Pool], requests: Sequence[Generate], repeats: int) -> dict[str, Any]:
    """Steps, wall seconds and answers of each side, sides taking turns; a first turn warms up."""
    steps: dict[str, list[int]] = {name: [] for name in SIDES}
    walls: dict[str, list[float]] = {name: [] for name in SIDES}
    said: dict[str, list[Any]] = {}
    for repeat in range(repeats + 1):
        for name, pool in pools.items():
            began_s = time.perf_counter()
            if name == "raw":
                ((_, (num_steps, said[name])),) = list(pool.run([requests]))
            else:
                found = [answer for _, answer in sorted(pool.run(requests))]
                num_steps = sum(answer.num_steps for answer in found)
                said[name] = [[one.ids for one in samples] for answer in found for samples in answer.answers]
            if repeat:
                walls[name].append(time.perf_counter() - began_s)
                steps[name].append(num_steps)
    tokens = {name: sum(len(ids) for samples in answers for ids in samples) for name, answers in said.items()}
    wall, step = ({name: statistics.median(values[name]) for name in SIDES} for values in (walls, steps))
    shares = {name: _equal(said["raw"], said[name]) for name in SIDES}
    for name in SIDES:
        ratio, wall_ratio = step[name] / step["raw"], wall[name] / wall["raw"]
        print(
            f"{name}: {step[name]:.0f} steps ({ratio:.3f} x raw), {wall[name]:.2f} s ({wall_ratio:.2f} x raw), "
            f"{tokens[name]} tokens, {shares[name]:.1%} of the answers as raw",
            flush=True,
        )
    return {
        "steps": steps,
        "wall_s": walls,
        "tokens": tokens,
        "share_of_equal_answers": shares,
        "steps_over_raw": {name: step[name] / step["raw"] for name in SIDES},
        "wall_over_raw": {name: wall[name] / wall["raw"] for name in SIDES},
    }


def _equal(ours: list[Any], theirs: list[Any]) -> float:
    both = [(a, b) for row, other in zip(ours, theirs, strict=True) for a, b in zip(row, other, strict=True)]
    return sum(tuple(a) == tuple(b) for a, b in both) / len(both)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling_steps", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, runtime.session(kind="local"):
        create_model(Path(folder) / "model", train_bpe(["sort 12 34 56 78 90 no"] * 2, VOCABULARY), seed=0, **SHAPE)
        section = VllmSection(max_num_seqs=AT_ONCE)
        spec = EngineSpec(str(Path(folder) / "model"), engine="vllm", vllm=section, end_ids=END_IDS)
        makers: dict[str, Any] = {
            "raw": partial(Raw, spec),
            "stream": partial(Generator, spec),
            "blocking": partial(Blocking, spec),
        }
        pools = {
            name: runtime.Pool(name, make, num_workers=1, cpus=0, threads=1, own_process=True)
            for name, make in makers.items()
        }
        with closing(pools["raw"]), closing(pools["stream"]), closing(pools["blocking"]):
            for num_answers in (1, 4):
                print(f"{NUM_PROMPTS} prompts, {num_answers} answers each, {AT_ONCE} at a time", flush=True)
                results[f"answers_{num_answers}"] = measured(pools, requests_of(num_answers), arguments.repeats)
    settings = {"repeats": arguments.repeats, "prompts": NUM_PROMPTS, "per_request": PER_REQUEST, "at_once": AT_ONCE}
    path = save(RESULTS, "sampling_steps", cpu_cores(), settings, results)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
