"""The evaluation stage of `raydpo evaluate`: which model is looked at, and its held-out metrics over all ranks.

Comes in: a workspace with token shards and the reference's log-probs. Goes out: metrics. Decision: ranks return sums and
counts, the division happens here, once.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from raydpo import runtime
from raydpo.artifacts import fetch
from raydpo.artifacts.input_copies import copied
from raydpo.config.places import is_in_store
from raydpo.driver.actors import actor_session, demand, trainer_ranks
from raydpo.driver.reference_stage import ReferenceReport
from raydpo.models.quantised import refuse_quantised
from raydpo.models.resolve import ResolvedModel, resolve_model
from raydpo.objectives.loss import Loss
from raydpo.rundir.checkpoints import newest_checkpoint
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Advanced, Observer, StageDone, StageStarted
from raydpo.train import TrainSpec
from raydpo.train.entry_sums import split_means
from raydpo.train.evaluation import run as evaluate_rank
from raydpo.train.trainer import names_of


def model_to_evaluate(workspace: Workspace) -> ResolvedModel:
    """A model folder or hub id; of a checkpoint folder, its `model/`; by default the run's model or newest checkpoint."""
    name = workspace.config.evaluate.model
    if name is None:
        newest, _ = newest_checkpoint(workspace.checkpoints)
        published = workspace.dir / "model"
        name = str(newest.folder if newest and not published.is_dir() else published)
    where = str(copied(name)) if is_in_store(name) else name
    inside = Path(where).expanduser() / "model"
    path = str(inside) if (inside.parent / "COMMIT.json").is_file() else where
    fetch(Path(path))
    model = resolve_model("evaluate.model", path)
    refuse_quantised("evaluate.model", model.whole().folder)
    return replace(model, name=name)


def evaluation_stage(
    workspace: Workspace, model: ResolvedModel, reference: ReferenceReport, num_examples: int, observer: Observer
) -> dict[str, float]:
    """Metrics of `model` on the held-out split, "eval/..."."""
    spec = TrainSpec(
        config=workspace.config,
        model=model,
        dtype=workspace.dtype,
        data=workspace.data,
        staging=workspace.staging(),
        reference=None if reference.identity is None else (workspace.cache_dir, reference.identity),
    )
    observer(StageStarted("evaluate", num_examples, "examples"))
    total, entries, done = list[float](), tuple[str, ...](), dict[int, int]()
    with actor_session(workspace, observer, "train"):
        runtime.wait_for_nodes(demand(workspace.config, "train"))
        for rank, share in trainer_ranks(workspace, "evaluate", partial(evaluate_rank, spec=spec)):
            done[rank] = share.examples
            observer(Advanced("evaluate", sum(done.values())))
            if share.done:
                total = [a + b for a, b in zip(total or [0.0] * len(share.vector), share.vector, strict=True)]
                entries = share.entries
    observer(StageDone("evaluate", f"{num_examples} held-out examples, {model.name}"))
    return split_means(Loss(workspace.config.objective.terms), names_of(spec), entries, total)
