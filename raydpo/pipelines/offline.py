"""The offline verbs: precompute, train, evaluate. Order and nothing else.

Each takes a `Config` and an observer (a callback for events) and returns the summary that the command line prints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raydpo.capacity.beyond_doubt import check_memory
from raydpo.config import Config
from raydpo.driver.actors import actor_session
from raydpo.driver.data_stage import check_held_out_data, check_training_data, data_stage
from raydpo.driver.disk_room import check_training_room
from raydpo.driver.evaluation_stage import evaluation_stage, model_to_evaluate
from raydpo.driver.moving_reference import References
from raydpo.driver.reference_stage import reference_stage
from raydpo.driver.standing_scorers import StandingScorers
from raydpo.driver.standing_trainers import StandingTrainers
from raydpo.driver.start_model import with_start
from raydpo.driver.train_events import Receive
from raydpo.driver.training import plan_stage, training_stage
from raydpo.run_report.at_end import report_at_end
from raydpo.rundir.workspace import open_workspace
from raydpo.schema.events import Observer, ignore


def precompute(config: Config, observer: Observer = ignore) -> dict[str, Any]:
    """Reference log-probs of every train and eval row into the shared cache. Trains nothing."""
    with open_workspace(config, "precompute") as workspace:
        workspace.write_config(replace=False)
        data = data_stage(workspace, observer)
        reference = reference_stage(workspace, ("train", "eval"), observer)
        summary = {"run_dir": workspace.place, "data": data.to_json(), "reference": reference.to_json()}
        workspace.write_summary(summary, "precompute.json")
    return summary


def train(
    config: Config,
    observer: Observer = ignore,
    *,
    receive: Receive | None = None,
    optimizer: Any = None,
    scorers: StandingScorers | None = None,
    trainers: StandingTrainers | None = None,
    is_wanted: Callable[[int], bool] = lambda num_steps: True,
) -> dict[str, Any]:
    """Precompute what is missing, train or go on, evaluate, publish `model/`. Writes summary.json.

    receive: gets the weights of the policy after the last step, if that step is made now (weight sync).
    optimizer: the checkpoint that another run ended with, whose model is `model.path`; the first step goes on with its
        optimizer state.
    scorers: reference workers that stand already.
    trainers: ranks that stand, of a run of rounds; without them ranks start and end here.
    is_wanted: whether `receive` is to get the weights after so many optimizer steps, asked before the training.

    With `reference.sync_every` an evaluation measures rewards from the reference that the steps up to it were trained
    against: the first one from the reference of the config, the last one from that of the last steps.
    """
    # One session for all stages: a demand that can never be met is refused before any work is done.
    lends_cpus = trainers is not None and trainers.lend_cpus
    with (
        open_workspace(config, "train") as workspace,
        actor_session(workspace, observer, *workspace.roles, lends_cpus=lends_cpus),
    ):
        check_memory(workspace, observer)
        data = data_stage(workspace, observer)
        check_training_data(workspace.config, data)
        workspace = with_start(workspace, observer)
        plan = plan_stage(workspace, observer, optimizer)
        references = References.of(workspace, data.train_pairs, scorers)
        check_training_room(workspace, plan, references.order.num_steps, has_eval=data.eval_pairs > 0)
        current = references.after(plan.checkpoint)
        workspace.write_config(replace=True)
        reference = references.score(current, plan.checkpoint, observer)
        done = training_stage(workspace, plan, references, reference, observer, receive, trainers, is_wanted)
        training, evaluation, syncs, reference = done
        moving = {} if references.every is None else {"syncs": syncs}
        summary = {
            "run_dir": workspace.place,
            "data": data.to_json(),
            "reference": {**reference.to_json(), **moving},
            "train": training,
            "eval": evaluation,
            **workspace.traffic,
        }
        workspace.write_summary(summary)
        if trainers is None:
            report_at_end(workspace.dir, observer)
    return summary


def evaluate(config: Config, observer: Observer = ignore) -> dict[str, Any]:
    """Held-out metrics of `evaluate.model` (default: the run's model). Writes evaluate.json.

    Rewards are measured from the reference that the config names, of a run with `reference.sync_every` too: then every
    checkpoint and every run is measured from one model, and the numbers are not those of the run's own evaluations.
    """
    with open_workspace(config, "evaluate") as workspace:
        workspace.write_config(replace=False)
        model = model_to_evaluate(workspace)
        data = data_stage(workspace, observer, evaluated=model)
        check_held_out_data(data)
        reference = reference_stage(workspace, ("eval",), observer)
        metrics, read = evaluation_stage(workspace, model, reference, data.eval_pairs, observer)
        summary = {
            "run_dir": workspace.place,
            "model": model.name,
            "data": data.to_json(),
            "reference": reference.to_json(),
            "eval": {"last": metrics, **read},
        }
        workspace.write_summary(summary, "evaluate.json")
    return summary
