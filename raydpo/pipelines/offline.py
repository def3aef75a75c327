"""The verbs: precompute, train, check, evaluate. Order and nothing else.

Each takes a `Config` and an observer and returns the summary that the command line prints.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raydpo.batches.order import Order
from raydpo.config import Config
from raydpo.errors import DataError
from raydpo.metrics import means
from raydpo.models.resolve import ResolvedModel, resolve_model
from raydpo.objectives.loss import Loss
from raydpo.pipelines.checkpoints import newest_checkpoint
from raydpo.pipelines.checks import check_labels
from raydpo.pipelines.driver import Receive
from raydpo.pipelines.moving_reference import References
from raydpo.pipelines.stages import ReferenceReport, data_stage, ray_session, reference_stage, trainer_ranks
from raydpo.pipelines.training import plan_stage, training_stage
from raydpo.pipelines.workspace import Workspace, find_workspace, open_workspace
from raydpo.schema.events import Advanced, Observer, StageDone, StageStarted, ignore
from raydpo.train import TrainSpec
from raydpo.train.evaluation import run as evaluate_rank
from raydpo.train.trainer import NAMES

Summary = dict[str, Any]


def precompute(config: Config, observer: Observer = ignore) -> Summary:
    """Reference log-probs of every train and eval row into the shared cache. Trains nothing."""
    with open_workspace(config, "precompute") as workspace:
        workspace.write_config(replace=False)
        data = data_stage(workspace, observer)
        reference = reference_stage(workspace, ("train", "eval"), observer)
        summary = {"run_dir": str(workspace.dir), "data": data.to_json(), "reference": reference.to_json()}
        workspace.write_summary(summary, "precompute.json")
    return summary


def train(
    config: Config, observer: Observer = ignore, *, receive: Receive | None = None, optimizer: Path | None = None
) -> Summary:
    """Precompute what is missing, train or go on, evaluate, publish `model/`. Writes summary.json.

    receive: gets the weights of the policy after the last step, if that is made now. optimizer: the checkpoint that
    another run ended with, whose model is `model.path`; the first step goes on with its optimizer state.
    With `reference.sync_every` an evaluation measures rewards from the reference that the steps up to it were trained
    against: the first one from the reference of the config, the last one from that of the last steps.
    """
    # One session for all stages: a demand that can never be met is refused before any work is done.
    with open_workspace(config, "train") as workspace, ray_session(workspace, *workspace.roles):
        data = data_stage(workspace, observer)
        if not data.train_pairs:
            raise DataError("data.train: no example is left after the checks; there is nothing to train on.")
        check_labels(workspace.config, data)
        plan = plan_stage(workspace, observer, optimizer)
        references = References(workspace, Order.of(workspace.config, data.train_pairs))
        current = references.after(plan.checkpoint)
        workspace.write_config(replace=True)
        reference = references.score(current, plan.checkpoint, observer)
        training, evaluation, syncs = training_stage(workspace, plan, references, reference, observer, receive)
        moving = {} if references.every is None else {"syncs": syncs}
        summary = {
            "run_dir": str(workspace.dir),
            "data": data.to_json(),
            "reference": {**reference.to_json(), **moving},
            "train": training,
            "eval": evaluation,
        }
        workspace.write_summary(summary)
    return summary


def check(config: Config, observer: Observer = ignore) -> Summary:
    """Config and data, without loading a model, starting Ray or writing anything. With `rounds`: prompts and judge, and
    data where there is any."""
    from raydpo.pipelines.rounds.setup import examine  # rounds train with this module

    rounds = {} if config.rounds is None else examine(config, observer)
    if rounds and not (config.data.train or config.data.eval):
        return rounds
    workspace = find_workspace(config, "check")
    data = data_stage(workspace, observer, write=False)
    plan: dict[str, Any] = {}
    if data.train_pairs:
        order = Order.of(workspace.config, data.train_pairs)
        plan = {"steps": order.num_steps, "steps_per_epoch": order.steps_per_epoch}
    return {**rounds, "run_dir": str(workspace.dir), "data": data.to_json(), "plan": plan}


def evaluate(config: Config, observer: Observer = ignore) -> Summary:
    """Held-out metrics of `evaluate.model` (default: the run's model). Writes evaluate.json.

    Rewards are measured from the reference that the config names, of a run with `reference.sync_every` too: then every
    checkpoint and every run is measured from one model, and the numbers are not those of the run's own evaluations.
    """
    with open_workspace(config, "evaluate") as workspace:
        workspace.write_config(replace=False)
        model = _model_to_evaluate(workspace)
        data = data_stage(workspace, observer)
        if not data.eval_pairs:
            raise DataError("data.eval: no example is left after the checks; there is nothing to evaluate on.")
        reference = reference_stage(workspace, ("eval",), observer)
        metrics = _evaluate(workspace, model, reference, data.eval_pairs, observer)
        summary = {
            "run_dir": str(workspace.dir),
            "model": model.name,
            "data": data.to_json(),
            "reference": reference.to_json(),
            "eval": {"last": metrics},
        }
        workspace.write_summary(summary, "evaluate.json")
    return summary


def _model_to_evaluate(workspace: Workspace) -> ResolvedModel:
    """A model folder or hub id; of a checkpoint folder, its `model/`; by default the run's model or newest checkpoint."""
    name = workspace.config.evaluate.model
    if name is None:
        newest, _ = newest_checkpoint(workspace.checkpoints)
        published = workspace.dir / "model"
        name = str(newest.folder if newest and not published.is_dir() else published)
    inside = Path(name).expanduser() / "model"
    path = str(inside) if (inside.parent / "COMMIT.json").is_file() else name
    return replace(resolve_model("evaluate.model", path, allow_adapter=True), name=name)


def _evaluate(
    workspace: Workspace, model: ResolvedModel, reference: ReferenceReport, num_examples: int, observer: Observer
) -> dict[str, float]:
    spec = TrainSpec(
        config=workspace.config,
        model=model,
        dtype=workspace.dtype,
        data=workspace.data,
        staging=workspace.staging(),
        reference=None if reference.identity is None else (workspace.cache_dir, reference.identity),
    )
    observer(StageStarted("evaluate", num_examples, "examples"))
    total, done = [0.0] * (2 * len(NAMES)), dict[int, int]()
    with ray_session(workspace, "train"):
        for rank, share in trainer_ranks(workspace, "evaluate", partial(evaluate_rank, spec=spec)):
            done[rank] = share.examples
            observer(Advanced("evaluate", sum(done.values())))
            if share.done:
                total = [a + b for a, b in zip(total, share.vector, strict=True)]
    observer(StageDone("evaluate", f"{num_examples} held-out examples, {model.name}"))
    return Loss(workspace.config.objective.terms).total(means(NAMES, total, "eval/"), "eval/")
