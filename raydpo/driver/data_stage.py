"""The data stage: read, check and encode what the config names, and ask whether it can answer what training will ask.

Comes in: a workspace. Goes out: token shards in `<run>/data` and a report. Decision: the stage returns a small report that
goes into the summary as it is; what it made lies on disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from raydpo import runtime
from raydpo.batches.order import Order
from raydpo.config import Config
from raydpo.config.cross_checks import best_metric, chosen_by_evaluations
from raydpo.config.mixture_entry import entries_of
from raydpo.config.places import is_in_store
from raydpo.data import DataReport, prepare
from raydpo.data.embedding_rows import smallest
from raydpo.data.parts import MakeParts, PartDone, PartMaker, PartSpec, PartWork
from raydpo.data.shown_rows import RowViewer
from raydpo.driver.actors import session_of
from raydpo.errors import ConfigError, DataError
from raydpo.models.before_loading import facts, forward_facts
from raydpo.models.config_file import num_embeddings
from raydpo.models.resolve import ResolvedModel
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Note, Observer


def data_stage(
    workspace: Workspace,
    observer: Observer,
    *,
    write: bool = True,
    evaluated: ResolvedModel | None = None,
    viewer: RowViewer | None = None,
) -> DataReport:
    """Read, check and encode into `<run>/data`; reuses a finished preparation of the same inputs.

    write=False: everything but writing. evaluated: a model that reads the data, too. viewer: is shown every used row.
    """
    for text in workspace.notes:
        observer(Note("warning", text))
    for text in _model_facts(workspace, evaluated):
        observer(Note("info", text))
    folder = str(workspace.model.tokenizer)
    embedding = smallest(_embeddings(workspace, evaluated))
    report = prepare(
        workspace.config,
        folder,
        workspace.data,
        write=write,
        observer=observer,
        embedding=embedding,
        model_folders=tuple(reversed(workspace.model.folders)),
        viewer=viewer,
        make_parts=_makers(workspace.config, observer),
    )
    if workspace.only_looks and not report.reused and workspace.config.run.runtime == "ray":
        raise ConfigError(
            f"run.dir: {workspace.place} may belong to a driver that still works there, and these are not the data that it "
            "prepared, so nodes of Ray would not find them; nothing was evaluated. Set run.dir to another place and "
            f"evaluate.model to a copy of the model, run.runtime to local, or wait for that driver."
        )
    return report


def _makers(config: Config, observer: Observer) -> MakeParts | None:
    """What makes parts of the data; None for this process."""
    if config.data.num_workers == 1:
        return None
    places = [
        config.run.dir,
        *(entry.path for entry in (*entries_of(config.data.train), *entries_of(config.data.eval))),
    ]
    if config.run.runtime == "ray" and (stored := [place for place in places if is_in_store(place)]):
        text = f"data.num_workers: 1 is used, since {stored[0]} is copied to this machine, and workers may be on others"
        observer(Note("info", text))
        return None
    return partial(_on_workers, config, observer)


def _on_workers(
    config: Config, observer: Observer, spec: PartSpec, works: Sequence[PartWork]
) -> Iterator[tuple[int, PartDone]]:
    """Parts of the data, made by a pool."""
    number, section, done = config.data.num_workers, config.reference, 0
    with session_of(config, [runtime.Demand("data", number, 1, 0)], observer):
        runtime.check_storage(spec.folder.parents[1])  # the run directory, which is there
        with runtime.deferred(committed=lambda: f"{done} of {len(works)} parts of the data are committed."):
            for found in runtime.run_pool(
                "data",
                partial(PartMaker, spec),
                works,
                num_workers=min(number, len(works)),
                cpus=1,
                max_retries=section.max_retries,
                hang_timeout_s=section.hang_timeout_s,
                hang_key="reference.hang_timeout_s",
            ):
                done += 1
                yield found


def _model_facts(workspace: Workspace, evaluated: ResolvedModel | None) -> list[str]:
    if evaluated is not None:
        return forward_facts("evaluate.model", evaluated.whole().folder)
    train = workspace.config.train
    is_packed = workspace.model.four_bit is not None
    return facts(workspace.model.folder, train.router_aux_loss, has_adapter=train.lora is not None, is_packed=is_packed)


def shown_data(workspace: Workspace, observer: Observer, num_rows: int) -> tuple[DataReport, list[dict[str, Any]]]:
    """The stage without writing, and the first `num_rows` used rows of each split as tokens."""
    viewer = RowViewer(num_rows)
    report = data_stage(workspace, observer, write=False, viewer=viewer)
    return report, [row.to_json() for row in viewer.rows]


def _embeddings(workspace: Workspace, evaluated: ResolvedModel | None) -> list[tuple[str, int | None]]:
    """(key of the config, rows of the embedding) of every model that reads the data."""
    models = {"model.path": workspace.model}
    if workspace.needs_reference and workspace.reference != workspace.model:
        models["reference.model"] = workspace.reference
    if evaluated is not None:
        models["evaluate.model"] = evaluated
    return [(key, num_embeddings(key, model.folder)) for key, model in models.items()]


def planned_steps(config: Config, report: DataReport) -> dict[str, int]:
    """Optimizer steps of a training on this data; nothing without training data."""
    if not report.train_pairs:
        return {}
    order = Order.of(config, report.train_pairs)
    return {"steps": order.num_steps, "steps_per_epoch": order.steps_per_epoch}


def check_training_data(config: Config, report: DataReport) -> None:
    """Raise DataError when there is nothing to train on, or the held-out data cannot answer what training asks of them."""
    if not report.train_pairs:
        raise DataError("data.train: no example is left after the checks; there is nothing to train on.")
    if not report.eval_pairs and (wanting := chosen_by_evaluations(config)):
        raise DataError(
            f"{', '.join(wanting)} looks at held-out data, and data.train has no held-out part by name; nothing was trained. "
            "Set data.eval or data.eval_fraction."
        )
    _check_labels(config, report)


def check_held_out_data(report: DataReport) -> None:
    """Raise DataError when there is nothing to evaluate on."""
    if not report.eval_pairs:
        raise DataError("data.eval: no example is left after the checks; there is nothing to evaluate on.")


def _check_labels(config: Config, report: DataReport) -> None:
    """Raise DataError when something is to be chosen by margins that the held-out data cannot have."""
    if config.objective.row.data != "labels" or not report.eval_pairs:
        return
    metric = best_metric(config)
    wanting = [
        f"{key}: {value}"
        for key, value, asks in (
            ("train.early_stopping_patience", config.train.early_stopping_patience, True),
            ("train.export", config.train.export, config.train.export == "best" and metric == "eval/rewards/margins"),
            ("train.best_metric", config.train.best_metric, metric == "eval/rewards/margins"),
        )
        if value is not None and asks
    ]
    if wanting and report.desirable["eval"] in (0, report.eval_pairs):
        raise DataError(
            f"{', '.join(wanting)} looks at eval/rewards/margins, the difference of desirable and undesirable answers, and all "
            f"{report.eval_pairs:,} held-out answers have one label; nothing was trained. Hold out both labels, or set "
            "train.best_metric: eval/loss and leave early stopping out."
        )
