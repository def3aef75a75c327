"""Run by test_vllm_parallel in a process of its own: an engine of two processes, before and after new weights."""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from raydpo.artifacts import shared_files
from raydpo.artifacts.shared_files import PREFIX, SHARED_MEMORY
from raydpo.config.vllm_section import VllmSection
from raydpo.generate.arrived import arrived
from raydpo.generate.engine import EngineSpec
from raydpo.generate.make_engine import make_engine
from raydpo.generate.mapped_weights import handed_over, mapped
from tests.generate.adapter_alone import pushed_adapter
from tests.generate.conftest import PROMPTS
from tests.generate.vllm_work import GREEDY, SEQUENCES


def main(old: str, new: str, out: str) -> None:
    section = VllmSection(tensor_parallel_size=2, enable_prefix_caching=False)
    engine = make_engine(EngineSpec(old, engine="vllm", parallel=section.parallel(0), vllm=section, threads=2))
    found: dict[str, Any] = {}
    created, create = [], shared_files.create
    shared_files.create = lambda num_bytes: created.append(num_bytes) or create(num_bytes)  # type: ignore[func-returns-value]
    for name in ("old", "new", "old_again"):
        if name == "new":
            with handed_over(load_file(Path(new) / "model.safetensors")) as shared:
                weights = mapped(shared)
                assert weights is not None
                engine.load_weights(weights)
                engine.finish_loading()
            found["files_of_a_push"] = len(created)
        elif name == "old_again":
            engine.load_folder(old)
        answers = engine.generate(PROMPTS, GREEDY, seed=0)
        found[name] = [[asdict(sample) for sample in samples] for samples in answers]
        found[f"{name}_nats"] = engine.score(SEQUENCES)[0]
    with pushed_adapter(Path(old), 3) as shared:
        weights = mapped(shared)
        assert weights is not None
        for part in arrived(weights):
            engine.load_weights(part)
        engine.finish_loading(is_partial=True)
    found["adapted_nats"] = engine.score(SEQUENCES)[0]
    found["left_in_memory"] = [path.name for path in SHARED_MEMORY.glob(f"{PREFIX}*")]
    found["children"] = [child.pid for child in psutil.Process().children(recursive=True)]
    Path(out).write_text(json.dumps(found))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
