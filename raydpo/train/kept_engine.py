"""What a rank keeps from run to run: one built part, given the weights of the next run in place where they fit.

Comes in: what the rank kept, and the spec of a run. Goes out: a built part as a start would have made it, or why there is none.
Decision: all ranks decide alike, because they look at the same spec and the same heads of files. What does not fit is freed
before the next one is built.
"""

from __future__ import annotations

from typing import Any

from raydpo.models.hollow import WholeNeeded
from raydpo.train.built import Built, fingerprint
from raydpo.train.engine_start import name_as, skeleton_of, start_again, take_start
from raydpo.train.spec import TrainSpec

_KEY = "trainer"


def keep(kept: dict[str, Any], built: Built) -> None:
    """Leave `built` for the next run."""
    kept[_KEY] = built


def stand_again(kept: dict[str, Any], spec: TrainSpec, num_ranks: int, use_gpu: bool) -> tuple[Built | None, int, str]:
    """(what stands, with the start of `spec`; bytes that this rank read for it; a sentence on it). Collective.

    Nothing where nothing was kept; where it does not fit it is freed, and the sentence says why.
    """
    built: Built | None = kept.get(_KEY)
    if built is None:
        return None, 0, ""
    try:
        if built.fingerprint != fingerprint(spec, num_ranks, use_gpu):
            raise WholeNeeded("the settings of the trainers are other ones")
        skeleton = skeleton_of(spec, built.engine)
    except WholeNeeded as why:
        del kept[_KEY]
        built.engine.close(keeps_group=num_ranks > 1)
        return None, 0, f"the model that stood was built anew for {spec.model.name}: {why}"
    if spec.stands:
        if not goes_on(spec):
            start_again(built.engine)
        name_as(built.scoring.model, skeleton.scoring.model)
        return built, 0, f"the model that stands holds the weights of {spec.model.name}: nothing was read"
    num_bytes = take_start(built.engine, skeleton)
    return built, num_bytes, f"the model that stands took the weights of {spec.model.name} in place"


def goes_on(spec: TrainSpec) -> bool:
    """Whether a rank that stands has the optimizer state of `spec`, too, and loads none."""
    return spec.stands and spec.resume is None and spec.optimizer is not None
