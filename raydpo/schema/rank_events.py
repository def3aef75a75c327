"""What a trainer rank yields to the driver, in order. Rank 0 yields values; the others yield `Alive`, their heartbeat, and
`Staged`.

Decision: the driver alone commits. A rank stages a checkpoint and says so; the driver, who holds the lock of the run
directory, makes it count. A rank of a dead attempt can therefore never commit anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raydpo.schema.events import Evaluated as Evaluated
from raydpo.schema.samples import Score
from raydpo.schema.shared_weights import SharedWeights


@dataclass(frozen=True)
class Alive:
    """A rank finished optimizer step `step`."""

    step: int


@dataclass(frozen=True)
class ModelReady:
    """Rank 0 has a model in its engine, as all others have.

    is_loaded: it was made for this run; else one that stood took other weights. bytes_read: of these, by rank 0.
    hindrance: why the next run on these ranks does not find it, as a clause; empty where it does.
    """

    is_loaded: bool
    bytes_read: int
    hindrance: str


@dataclass(frozen=True)
class Noted:
    """One line for the person who watches."""

    text: str


@dataclass(frozen=True)
class UpdatedBy:
    """What updates an offloaded optimizer in this attempt. optimizer: its name; text: that, for the person who watches."""

    optimizer: str
    text: str


@dataclass(frozen=True)
class Probed:
    """Cached reference rows against the trainer's own at a fresh start.

    rows: how many were compared.
    max_difference_nats: largest difference of an answer's sum.
    tolerance_nats: what it may be.
    noise_nats: what rounding does to a token's log-prob, measured.
    """

    rows: int
    max_difference_nats: float
    tolerance_nats: float
    noise_nats: float


@dataclass(frozen=True)
class RowsScored:
    """Ranks have scored rows of the reference before the first step, and written them into its cache.

    rows: since the last event, on all ranks.
    forwards: of the model for them.
    is_last: all are there now.
    """

    rows: int
    forwards: int
    is_last: bool = False


@dataclass(frozen=True)
class Profiled:
    """Rank 0 has put the profile of a few steps into `folder`; it is not published yet. text: its main shares."""

    folder: str
    text: str


@dataclass(frozen=True)
class Stepped:
    """One optimizer step: step counts from 1; metrics name -> mean over the global batch."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Skipped:
    """A step whose loss or gradient was not finite: nothing was updated.

    step: its number.
    loss, grad_norm: the values that were found.
    sources: "file:line" of its examples.
    """

    step: int
    loss: float
    grad_norm: float
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Staging:
    """Rank 0 has copied its part of a checkpoint of `step`, and writes it while training goes on."""

    step: int


@dataclass(frozen=True)
class Staged:
    """A rank has written its part of a checkpoint. Every rank yields it; the checkpoint is whole when all have.

    step: optimizer steps that it holds.
    folder: where it is.
    metrics: the evaluation at this step, if there was one.
    reason: why this is the last checkpoint, empty otherwise.
    num_parts: ranks that write one.
    files: of those that were hashed while they were written, name in the folder -> (bytes, SHA-256 in hex).
    handed: of those that a rank of another node has put into an object store, name -> (address, key, bytes, SHA-256 in hex).
    """

    step: int
    folder: str
    metrics: Mapping[str, float]
    reason: str = ""
    num_parts: int = 1
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    handed: Mapping[str, tuple[str, str, int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """Training is over after `step` steps, because `reason`."""

    step: int
    reason: str


@dataclass(frozen=True)
class WeightsPart:
    """Some of the policy's weights after the last step, for a weight sync.

    weights: name in memory -> CPU tensor in the compute dtype; tied weights come once.
    is_last: whether this part is the last one.
    is_partial: a LoRA run sends only matrices that the adapter changes, merged.
    """

    weights: Mapping[str, Any]
    is_last: bool
    is_partial: bool = False


PROBE_FILE = "probe.json"
"""In a checkpoint, next to its model: log-probs of a few rows by the trainers at its step."""


@dataclass(frozen=True)
class PolicyProbe:
    """Log-probs of a few sequences under the policy of the `WeightsPart`s, to compare a copy with.

    request: the sequences, as a `Score`.
    nats, top_ids, top_nats: the answer, as in `Scored`.
    """

    request: Score
    nats: tuple[tuple[float, ...], ...]
    top_ids: tuple[tuple[int, ...], ...]
    top_nats: tuple[tuple[float, ...], ...]


TrainEvent = (
    Staging
    | RowsScored
    | UpdatedBy
    | ModelReady
    | (
        Alive
        | Noted
        | Probed
        | Profiled
        | Stepped
        | Skipped
        | Evaluated
        | Staged
        | Finished
        | WeightsPart
        | SharedWeights
        | PolicyProbe
    )
)
