"""Run by test_vllm_parallel in a process of its own: an engine of two processes, before and after new weights."""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from raydpo.config.vllm_section import VllmSection
from raydpo.generate.engine import EngineSpec
from raydpo.generate.handed_weights import SHARED_MEMORY
from raydpo.generate.make_engine import make_engine
from tests.generate.conftest import PROMPTS
from tests.generate.vllm_work import GREEDY, SEQUENCES


def main(old: str, new: str, out: str) -> None:
    section = VllmSection(tensor_parallel_size=2, enable_prefix_caching=False)
    engine = make_engine(EngineSpec(old, engine="vllm", parallel=section.parallel(0), vllm=section, threads=2))
    found: dict[str, Any] = {}
    for name in ("old", "new"):
        if name == "new":
            engine.load_folder(new)
        answers = engine.generate(PROMPTS, GREEDY, seed=0)
        found[name] = [[asdict(sample) for sample in samples] for samples in answers]
        found[f"{name}_nats"] = engine.score(SEQUENCES)[0]
    found["left_in_memory"] = [path.name for path in SHARED_MEMORY.glob("raydpo-weights-*")]
    found["children"] = [child.pid for child in psutil.Process().children(recursive=True)]
    Path(out).write_text(json.dumps(found))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
