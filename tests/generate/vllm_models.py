"""Greedy answers of vLLM engines in one process of their own, after pushes and loads; to a JSON file. Run by
test_vllm_models."""

import json
import sys
from pathlib import Path
from typing import Any

from raydpo.generate.engine import Engine, EngineSpec
from raydpo.generate.make_engine import make_engine
from raydpo.schema.samples import Sampling
from tests.generate.architectures import KINDS, pushed
from tests.generate.conftest import PROMPTS

GREEDY = Sampling(num_answers=1, max_new_tokens=12, greedy=True)


def answers(engine: Engine) -> list[list[int]]:
    return [list(samples[0].ids) for samples in engine.generate(PROMPTS, GREEDY, seed=0)]


def after_each_change(engine: Engine, raw: Path, saved: Path) -> dict[str, Any]:
    """Answers at the start, of a policy that was pushed, of a folder, and of the start with every second weight pushed."""
    found = {"start": answers(engine)}
    for part in pushed(saved):
        engine.load_weights(part)
    engine.finish_loading()
    found["pushed"] = answers(engine)
    engine.load_folder(str(raw))
    found["folder"] = answers(engine)
    weights = [weight for part in pushed(saved) for weight in part.items()]
    engine.load_weights(dict(weights[::2]))
    engine.finish_loading(is_partial=True)
    found["partly pushed"] = answers(engine)
    return found


def main(folder: str, out: str) -> None:
    found = {}
    for kind in KINDS:
        raw, saved = Path(folder) / kind / "raw", Path(folder) / kind / "saved"
        found[kind] = after_each_change(make_engine(EngineSpec(str(raw), engine="vllm")), raw, saved)
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
