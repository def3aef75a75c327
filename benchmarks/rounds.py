"""`python -m benchmarks.rounds placement | vllm`: what rounds cost, side by side, sides taking turns.

placement: the same rounds with generators that wait while trainers run, and with generators that sample meanwhile.
vllm: a generator actor's tokens a second against `vllm.LLM.generate` on the same prompts.
Prints the figures and writes one JSON file, named by hardware and date.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import raydpo
from benchmarks.made import RESULTS, cpu_cores, save
from benchmarks.step.shapes import make_model
from raydpo import runtime
from raydpo.config import Config
from raydpo.generate.engine import EngineSpec
from raydpo.generate.worker import Generator
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from raydpo.quickstart.offline_dpo import SHAPE, VOCABULARY
from raydpo.quickstart.sorting_task import write_task
from raydpo.schema.samples import Generate, Sampling

PROMPTS_PER_ITEM = 32


def placement(repeats: int) -> dict[str, Any]:
    """Three rounds of 384 prompts, a generator and a trainer of one CPU each; wall seconds and busy shares."""
    found: dict[str, list[dict[str, Any]]] = {"colocated": [], "split": []}
    with tempfile.TemporaryDirectory() as folder, runtime.session():
        root = Path(folder)
        task = write_task(root / "task", 0)
        create_model(root / "model", train_bpe(task.texts, VOCABULARY), seed=0, **{**SHAPE, "max_positions": 128})
        for repeat in range(repeats):
            for name, summaries in found.items():
                run_dir = root / f"{name}-{repeat}"
                for _ in raydpo.iterate(_config(root, task.pairs, run_dir, name)):
                    pass
                summaries.append(json.loads((run_dir / "summary.json").read_text()))
                print(f"{name}: {_shown(summaries[-1])}", flush=True)
    walls = {name: [one["wall_s"] for one in summaries] for name, summaries in found.items()}
    ratio = statistics.median(walls["split"]) / statistics.median(walls["colocated"])
    print(f"split takes {ratio:.2f} of the time of colocated")
    shares = {name: [one["busy_share"] for one in summaries] for name, summaries in found.items()}
    return {"wall_s": walls, "busy_share": shares, "split_over_colocated": ratio}


def _config(root: Path, prompts: Path, run_dir: Path, name: str) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(run_dir)},
            "model": {"path": str(root / "model"), "dtype": "float32"},
            "data": {"max_length": 128},
            "reference": {"cache_dir": str(run_dir / "cache")},
            "train": {"learning_rate": 7e-5, "global_batch_pairs": 32},
            "generate": {"num_answers": 8, "max_new_tokens": 96, "prompts_per_item": PROMPTS_PER_ITEM},
            "judge": {"kind": "length", "target_length": 100},
            "rounds": {
                "prompts": [str(prompts)],
                "prompts_per_round": 384,
                "num_rounds": 3,
                "reference": "previous_round",
                "truncated": "keep",
                "placement": name,
            },
        }
    )


def _shown(summary: dict[str, Any]) -> str:
    shares = ", ".join(f"{role} {share:.0%}" for role, share in summary["busy_share"].items())
    return f"{summary['wall_s']:.0f} s, busy: {shares}"


def vllm(repeats: int) -> dict[str, Any]:
    """96 prompts of 100 ids, 4 answers of 64 tokens each; tokens a second of both sides, and their ratio."""
    sampling = Sampling(num_answers=4, max_new_tokens=64)
    prompts = tuple(tuple(3 + (7 * row + 13 * place) % 30_000 for place in range(100)) for row in range(96))
    rates: dict[str, list[float]] = {"vllm": [], "raydpo": []}
    with tempfile.TemporaryDirectory() as folder, runtime.session():
        make_model("56m", Path(folder) / "model", "float32")
        threads = runtime.count_cpus()
        spec = EngineSpec(str(Path(folder) / "model"), engine="vllm", max_length=1024, threads=threads)
        pool = partial(runtime.Pool, num_workers=1, cpus=0, threads=threads)
        with (
            closing(pool("raydpo", partial(Generator, spec))) as ours,
            closing(pool("vllm", partial(_raw, spec, sampling))) as theirs,
        ):
            items = [prompts[start : start + PROMPTS_PER_ITEM] for start in range(0, len(prompts), PROMPTS_PER_ITEM)]
            requests = [Generate(item, sampling, seed=number, version=0) for number, item in enumerate(items)]
            sides: dict[str, Callable[[], int]] = {
                "vllm": lambda: sum(number for _, number in theirs.run([prompts])),
                "raydpo": lambda: _count(answer for _, answer in ours.run(requests)),
            }
            for repeat in range(repeats + 1):
                for name, run in sides.items():
                    began_s = time.perf_counter()
                    tokens = run()
                    if repeat:  # the first one starts the engine
                        rates[name].append(tokens / (time.perf_counter() - began_s))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    share = medians["raydpo"] / medians["vllm"]
    print(", ".join(f"{name} {rate:.0f} tokens/s" for name, rate in medians.items()) + f", share {share:.2f}")
    return {"tokens_per_s": rates, "share": share}


def _count(answers: Any) -> int:
    return sum(len(sample.ids) for answer in answers for samples in answer.answers for sample in samples)


def _raw(spec: EngineSpec, sampling: Sampling) -> Callable[[Sequence[Sequence[int]]], int]:
    """In the actor: vLLM as one would call it by hand, all prompts in one call."""
    from raydpo.generate.vllm_engine import VllmEngine

    llm = VllmEngine(spec)._llm  # started with the same settings

    def run(prompts: Sequence[Sequence[int]]) -> int:
        from vllm import SamplingParams

        params = SamplingParams(n=sampling.num_answers, max_tokens=sampling.max_new_tokens, seed=1)
        done = llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
        llm.reset_prefix_cache()
        return sum(len(output.token_ids) for each in done for output in each.outputs)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rounds", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("placement", "vllm"))
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    result = {"placement": placement, "vllm": vllm}[arguments.what](arguments.repeats)
    path = save(RESULTS, f"rounds_{arguments.what}", cpu_cores(), {"repeats": arguments.repeats}, result)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
