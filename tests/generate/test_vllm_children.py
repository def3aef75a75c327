"""The processes of an engine of two end with their actor, however it ends, on either runtime."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from raydpo.config.vllm_section import VllmSection
from raydpo.errors import WorkerError
from raydpo.generate.engine import EngineSpec
from raydpo.runtime import Kind, run_pool, session
from tests.generate.test_vllm_engine import needs_vllm


def engine_worker(folder: str) -> Callable[[str], list[int]]:
    """In the actor: an engine over two processes; answers with its own id, then theirs."""
    from raydpo.generate.make_engine import make_engine

    section = VllmSection(tensor_parallel_size=2, enable_prefix_caching=False)
    spec = EngineSpec(folder, engine="vllm", parallel=section.parallel(0), vllm=section, takes_weights=False)
    engine = make_engine(spec)

    def work(item: str) -> list[int]:
        assert engine.health()["engine"] == "vllm"
        if item == "wait":
            signal.pause()
        return [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]

    return work


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("kind", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_children_of_an_engine_die_with_an_actor_that_is_killed(kind: Kind, old: Path) -> None:
    items = ["pids", "wait"]
    with session(kind=kind, local_cpus=2):
        answers: Iterator[tuple[int, list[int]]] = run_pool(
            "generate", partial(engine_worker, str(old)), items, num_workers=1, cpus=1, threads=1, own_process=True
        )
        _, (actor, *children) = next(answers)
        processes = [psutil.Process(pid) for pid in children]
        assert len(processes) >= 2
        os.kill(actor, signal.SIGKILL)
        with pytest.raises(WorkerError, match="died"):
            next(answers)
        _, alive = psutil.wait_procs(processes, timeout=120)
        assert alive == []
