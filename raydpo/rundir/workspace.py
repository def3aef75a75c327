"""A run directory and everything that a pipeline needs before its first stage: paths, models, dtype.

Decision: all of it is derived from the config once, here; stages get finished values.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from raydpo import runtime
from raydpo.artifacts import (
    CacheIdentity,
    Lease,
    digest_of,
    discard,
    fence,
    fsync,
    local_path,
    require_lease,
    settle,
    shown,
    write_json,
    write_text,
)
from raydpo.artifacts.folders import REMOVED
from raydpo.artifacts.mirror_path import url_of
from raydpo.artifacts.placeholder import store_at
from raydpo.config import Config
from raydpo.config.cross_checks import cross_checks
from raydpo.config.render import dump
from raydpo.disk import full_disk
from raydpo.errors import ConfigError, StorageError
from raydpo.models.four_bit import FourBit
from raydpo.models.resolve import ResolvedModel, describe_model, resolve_model
from raydpo.redaction import redacted_values
from raydpo.reference.identity import NO_ADAPTER, digests, reference_identity
from raydpo.rundir.checkpoints import committed_said
from raydpo.rundir.named_models import NamedModels


@dataclass(frozen=True)
class Workspace:
    """The run directory of `config`, with the models that it names found on disk.

    config: fitted to the model.
    dir: the run directory, or its working copy on this machine.
    cache_dir: folder of reference caches.
    model, reference: where training starts, and what log-ratios are measured from.
    notes: what was fitted to the model, in words.
    only_looks: another driver may work there, and nothing of this one's reaches the object store but what it shows.
    start, baseline: folders of `model` and `reference` merged, where these are adapters and were merged (driver.start_model).
    """

    config: Config
    dir: Path
    cache_dir: Path
    model: ResolvedModel
    reference: ResolvedModel
    notes: tuple[str, ...] = ()
    only_looks: bool = False
    start: ResolvedModel | None = None
    baseline: ResolvedModel | None = None

    @property
    def place(self) -> str:
        """The run directory as a person named it: an address, or a path of this machine."""
        return shown(self.dir)

    @property
    def copies(self) -> tuple[str, ...]:
        """A sentence for each place in an object store: where its working copy is on this machine."""
        places = {"run.dir": self.dir, "reference.cache_dir": self.cache_dir}
        return tuple(
            f"{key}: {url} is in an object store; what this machine has of it is in {path}"
            for key, path in places.items()
            if (url := url_of(path)) is not None
        )

    @property
    def traffic(self) -> dict[str, dict[str, int]]:
        """Requests by kind and bytes of this process, under "store"; nothing for a run directory of this machine."""
        url = url_of(self.dir)
        return {} if url is None else {"store": dict(sorted(store_at(url).counts.items()))}

    @property
    def trained_from(self) -> ResolvedModel:
        """What trainers load."""
        return self.start or self.model

    @property
    def measured_by(self) -> ResolvedModel:
        """What reference workers load."""
        return self.baseline or self.reference

    @property
    def data(self) -> Path:
        return self.dir / "data"

    @property
    def checkpoints(self) -> Path:
        return self.dir / "checkpoints"

    @property
    def references(self) -> Path:
        """Where a reference that follows the policy is kept, a folder an update."""
        return self.dir / "references"

    @property
    def needs_reference(self) -> bool:
        return self.config.objective.needs_reference

    @property
    def roles(self) -> tuple[str, ...]:
        """Who works for a training run."""
        return ("reference", "train") if self.needs_reference else ("train",)

    @property
    def use_gpu(self) -> bool:
        """Whether any role of a training run has a GPU."""
        return any(getattr(self.config, role).gpus_per_worker > 0 for role in self.roles)

    @property
    def dtype(self) -> str:
        """Compute dtype of policy and reference alike."""
        if self.config.model.dtype != "auto":
            return self.config.model.dtype
        return "bfloat16" if self.use_gpu else "float32"

    @cached_property
    def _digests(self) -> tuple[str, str]:
        return digests(self.model)

    @property
    def model_digest(self) -> str:
        """Digest of the weights that training starts from. Hashes its files at the first use."""
        weights, adapter = self._digests
        return weights if adapter == NO_ADAPTER else digest_of([weights, adapter])

    @cached_property
    def identity(self) -> CacheIdentity | None:
        """Identity of the cache of this run's reference, None without one. Hashes its files at the first use."""
        if not self.needs_reference:
            return None
        use_gpu = self.config.reference.gpus_per_worker > 0
        weights, adapter = self._digests if self.reference == self.model else digests(self.reference)
        attention = self.config.model.attention
        return reference_identity(weights, self.model.tokenizer, self.dtype, attention, use_gpu, adapter)

    @property
    def starts_at_reference(self) -> bool:
        """Whether policy and reference start as the same weights."""
        identity = self.identity
        return identity is not None and (identity.weights, identity.adapter) == self._digests

    def measured_from(self, folder: Path) -> Workspace:
        """The same workspace with the model in `folder` as its reference."""
        return replace(self, reference=ResolvedModel(str(folder), None, folder), baseline=None)

    def staging(self) -> Path:
        """A folder name that no other attempt uses."""
        return self.checkpoints / f".staging-{uuid.uuid4().hex[:12]}"

    def set_aside(self) -> Path | None:
        """Move the outputs of an earlier run out of the way (`resume: never`). Nothing is deleted."""
        names = (
            "checkpoints",
            "references",
            "model",
            "model_merged",
            "metrics.jsonl",
            "evaluation.arrow",
            "tensorboard",
            "summary.json",
            "report.html",
            "bad_batches.jsonl",
            "profile",
        )
        present = [self.dir / name for name in names if (self.dir / name).exists()]
        if not present:
            return None
        require_lease(self.dir)
        aside = self.dir / f"replaced-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        aside.mkdir(parents=True)
        for path in present:
            path.rename(aside / path.name)
        return aside

    def unpublished(self, name: str) -> Path:
        """Where to put what will become the run's `name`; leftovers of it are swept away."""
        return self.dir / f".{name}-{uuid.uuid4().hex[:12]}"

    def publish(self, fresh: Path, name: str) -> Path:
        """Make the `unpublished` folder the run's `name`. A reader sees the old one, none, or the new one, never a half.

        Raises LostLeaseError, leaving the old one, when another driver took the run directory over.
        """
        final = self.dir / name
        for path in fresh.rglob("*"):
            fsync(path)  # the checkpoint that it was copied from may be removed
        with runtime.deferred():  # of a signal, too, a reader sees no half
            fence(final)
            if final.exists():
                discard(final)
            fresh.rename(final)
        settle(final)
        return final

    def write_config(self, *, replace: bool) -> None:
        """The resolved config as config.yaml. replace=False leaves the one of an earlier training as it is."""
        if replace or not (self.dir / "config.yaml").is_file():
            write_text(self.dir / "config.yaml", dump(self.config))

    def write_summary(self, summary: dict[str, Any], name: str = "summary.json") -> None:
        fence(self.dir / name)
        write_json(self.dir / name, redacted_values(summary))
        settle(self.dir / name)


_COMMITTED: dict[str, Callable[[], str]] = {
    "precompute": lambda: "Every shard of rows that was scored is committed.",
    "evaluate": lambda: "An evaluation commits nothing before its end.",
}
"""What is safe where a signal ends a verb between its stages."""


@contextmanager
def open_workspace(config: Config, verb: str) -> Iterator[Workspace]:
    """Check paths, find models and lock the run directory."""
    workspace = find_workspace(config, verb)
    try:
        workspace.dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"run.dir: {workspace.dir} cannot be made ({error.strerror}); a folder that this user may write to is needed, and "
            "nothing was started. Choose another run.dir."
        ) from error
    quiet = full_disk(workspace.dir, asks_disk=False)
    said = _COMMITTED.get(verb, partial(committed_said, workspace.checkpoints))
    with (
        quiet,
        Lease(workspace.dir, gives_way=verb == "evaluate") as lease,
        runtime.watching(config.run.stop_grace_s, said),
    ):
        _sweep(workspace.dir)
        notes, only_looks = (*workspace.notes, *lease.notes), lease.looked_at is not None
        yield replace(workspace, notes=notes, only_looks=only_looks)


def _sweep(folder: Path) -> None:
    """Remove what earlier attempts left unfinished. A folder loses its name first: a driver that was given leave to commit it
    before it lost the lease has then done so, or cannot."""
    for name in ("checkpoints", "references", "."):
        for pattern in (".staging-*", ".model*-*", ".profile-*", f"{REMOVED}*"):
            for leftover in (folder / name).glob(pattern):
                with suppress(OSError):
                    discard(leftover)


def _in_the_way(run_dir: str) -> Iterator[str]:
    """What stands where the run would put a folder of its own: said at the start, not after the training."""
    place = local_path(run_dir)
    names = ("data", "checkpoints", "references", "model", "model_merged", "tensorboard")
    for path in (place, *(place / name for name in names)):
        if path.exists() and not path.is_dir():
            yield f"run.dir: {path} is a file, and a folder belongs there; nothing was started. Choose another run.dir."
        elif path.name in ("model", "model_merged") and path != place and path.is_symlink():
            yield (
                f"run.dir: {path} is a link (to {path.readlink()}), and the trained model takes its place; what it leads to is "
                "not touched, so nothing was started. Remove the link, or choose another run.dir."
            )


def find_workspace(config: Config, verb: str, *, weights: bool = True) -> Workspace:
    """The workspace of `config`, touching nothing. Every problem at once as ConfigError."""
    named = NamedModels(config, describe_model if verb == "check" or not weights else resolve_model)
    problems = [
        *cross_checks(config, verb),
        *named.problems(),
        *named.training_problems(verb),
        *_in_the_way(config.run.dir),
    ]
    model = named.found.get("model.path")
    if problems or model is None or named.fitted is None:
        raise ConfigError(problems)
    workspace = Workspace(
        named.fitted,
        local_path(config.run.dir),
        local_path(config.reference.cache_dir),
        model,
        named.found.get("reference.model", model),
        named.notes,
    )
    lora = workspace.config.train.lora
    if lora is None or lora.quantize_base == "none":
        return workspace
    four_bit = FourBit(workspace.dtype, lora.modules_to_save)
    policy, reference = (replace(found, four_bit=four_bit) for found in (workspace.model, workspace.reference))
    return replace(workspace, model=policy, reference=reference)
