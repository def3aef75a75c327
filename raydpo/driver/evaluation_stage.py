"""The evaluation stage of `raydpo evaluate`: which model is looked at, and its held-out metrics over all ranks.

Comes in: a workspace with token shards and the reference's log-probs. Goes out: metrics. Decision: ranks return sums and
counts, the division happens here, once. A rank holds the model as `reference.weights: auto` would, one layer at a time where it
is larger than what is free (`whole`: whole).
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
from raydpo.driver.reference_stage import ReferenceReport, sharing
from raydpo.models.quantised import refuse_quantised
from raydpo.models.resolve import ResolvedModel, resolve_model
from raydpo.objectives.loss import Loss
from raydpo.reference.held import Hold, hold
from raydpo.reference.way import Weights
from raydpo.rundir.checkpoints import newest_checkpoint
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Advanced, Note, Observer, StageDone, StageStarted
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
) -> tuple[dict[str, float], dict[str, int]]:
    """Metrics of `model` on the held-out split, "eval/..."; and of a streamed one, what was read of it."""
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
    passes, weight_bytes, said = 0, 0, set[str]()
    with actor_session(workspace, observer, "train"):
        runtime.wait_for_nodes(demand(workspace.config, "train"))
        function = partial(evaluate_rank, spec=spec, hold=_hold(workspace, model))
        for rank, share in trainer_ranks(workspace, "evaluate", function):
            if share.said and share.said not in said:
                said.add(share.said)
                observer(Note("info", f"evaluate: {share.said}"))
            done[rank] = share.examples
            observer(Advanced("evaluate", sum(done.values())))
            if share.done:
                total = [a + b for a, b in zip(total or [0.0] * len(share.vector), share.vector, strict=True)]
                entries = share.entries
                passes, weight_bytes = passes + share.passes, weight_bytes + share.weight_bytes
    text = f"{num_examples} held-out examples, {model.name}"
    if passes:
        text += f"; streamed in {passes:,} passes, {weight_bytes / 1e9:,.2f} GB of weights read"
    observer(StageDone("evaluate", text))
    metrics = split_means(Loss(workspace.config.objective.terms), names_of(spec), entries, total)
    return metrics, {"passes": passes, "weight_bytes": weight_bytes} if passes else {}


def _hold(workspace: Workspace, model: ResolvedModel) -> Hold:
    train, attention = workspace.config.train, workspace.config.model.attention
    num_sharing = sharing(train.gpus_per_worker, train.ranks[0])
    return partial(hold, model, workspace.dtype, attention, weights_of(workspace), num_sharing)


def weights_of(workspace: Workspace) -> Weights:
    """How a model that is not the reference is held by whoever scores it."""
    return "whole" if workspace.config.reference.weights == "whole" else "auto"
