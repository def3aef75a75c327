"""Adapters that a run starts from, or measures from while the reference moves: merged once, into a folder of the run.

Comes in: a workspace whose models are as the config names them. Goes out: the workspace with `<run>/merged/<digest>` in their
place, a plain transformers folder. Decision: what trains, scores, samples and is exported then reads one set of bytes, and
an adapter that the run makes has a base that every loader finds. Price: one more copy of the model on disk; it stays for as
long as the run's adapter needs its base.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from raydpo import runtime
from raydpo.artifacts import commit_folder, digest_of, verify_folder
from raydpo.config import Config
from raydpo.disk import full_disk, removed_on_error
from raydpo.driver.actors import libraries_of, trainer_limits
from raydpo.models.resolve import ResolvedModel
from raydpo.reference.identity import model_digest
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Note, Observer


@dataclass(frozen=True)
class MergeJob:
    """What is merged, where to, and in which dtype it is written."""

    found: ResolvedModel
    out: Path
    dtype: str


def with_start(workspace: Workspace, observer: Observer) -> Workspace:
    """The workspace with its adapters merged into plain folders. Needs a session. Raises ConfigError for what does not fit."""
    start = _plain(workspace, workspace.model, observer)
    if workspace.reference == workspace.model:
        return replace(workspace, start=start, baseline=start)
    moves = workspace.config.reference.sync_every is not None and workspace.needs_reference
    baseline = _plain(workspace, workspace.reference, observer) if moves else None
    return replace(workspace, start=start, baseline=baseline)


def initial_policy(
    config: Config, run_dir: Path, found: ResolvedModel, dtype: str, observer: Observer
) -> ResolvedModel:
    """The model that rounds start from, merged into a folder of the run where it is an adapter. Needs a session."""
    return _merged_into(config, run_dir, found, dtype, observer)


def merged_folder(run_dir: Path, found: ResolvedModel, dtype: str) -> Path:
    """Where the adapter `found` lies merged in `dtype`."""
    return run_dir / "merged" / digest_of([model_digest(found), dtype])[:16]


def _plain(workspace: Workspace, found: ResolvedModel, observer: Observer) -> ResolvedModel | None:
    if found.base is None:
        return None
    return _merged_into(workspace.config, workspace.dir, found, workspace.dtype, observer)


def _merged_into(config: Config, run_dir: Path, found: ResolvedModel, dtype: str, observer: Observer) -> ResolvedModel:
    if found.base is None:
        return found
    found, packing = replace(found, four_bit=None), found.four_bit
    folder = merged_folder(run_dir, found, dtype)
    if verify_folder(folder):
        runtime.check_storage(run_dir)
        staging = folder.with_name(f".{folder.name}-work")
        shutil.rmtree(staging, ignore_errors=True)
        staging.parent.mkdir(parents=True, exist_ok=True)
        with removed_on_error(staging):
            jobs, limits = [MergeJob(found, staging, dtype)], trainer_limits(config.train)
            list(runtime.run_pool("merge", merger, jobs, num_workers=1, preload=libraries_of(), **limits))
            meta = {"adapter": found.name, "base": found.whole().name, "dtype": dtype}
            commit_folder(staging, folder, meta, replace=True)
        observer(Note("info", f"the adapter {found.name} and its base {found.whole().name} were merged into {folder}"))
    return ResolvedModel(found.name, None, folder, four_bit=packing)


def merger() -> Callable[[MergeJob], None]:
    """A worker that merges."""
    from raydpo.models.merging import write_merged

    def merge(job: MergeJob) -> None:
        with full_disk(job.out):
            write_merged(job.found, job.out, job.dtype)

    return merge
