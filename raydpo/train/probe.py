"""Is the cache this policy's reference? Compare a few cached rows with the trainer's own log-probs before step 1.

Decision: the probe runs on the engine that will train (same kernels, same sharding), over the longest, the shortest and
evenly spaced examples. A fresh policy equals its reference, so any difference beyond the noise of rounding, which is
measured on these rows, is a wrong cache.
"""

from __future__ import annotations

import numpy as np
import torch

from raydpo.batches import MicroBatch, collate
from raydpo.errors import ReferenceMismatchError
from raydpo.models.agreement import Noise, compare, probe_examples
from raydpo.models.rounding import rounded_otherwise
from raydpo.schema.rank_events import Probed
from raydpo.train.deepspeed_engine import DeepSpeedEngine
from raydpo.train.feed import Feed


@torch.no_grad()
def probe(engine: DeepSpeedEngine, feed: Feed, dtype: str) -> Probed:
    """Every rank scores the same rows (under ZeRO-3 forwards are collective). Raises ReferenceMismatchError."""
    examples = probe_examples(feed.table.prompt_lengths + feed.table.answer_lengths.sum(axis=1))
    batches = [collate(feed.table, [example], feed.answers, feed.lookup, layout=feed.layout) for example in examples]
    ends = [np.cumsum(feed.table.loss_lengths[example, : feed.num_answers])[:-1] for example in examples]
    cached = _rows([_given(batch) for batch in batches], ends)
    ours = _rows([_nats(engine, batch) for batch in batches], ends)
    with rounded_otherwise(engine.engine.module.model):
        noise = Noise.between(ours, _rows([_nats(engine, batch) for batch in batches], ends))
    found = compare(ours, cached, noise.tolerance)
    if found.problem is not None:
        row, now, then, difference, allowed = found.problem
        raise ReferenceMismatchError(
            f"the cached reference of {feed.table.source(examples[row // feed.num_answers])} (answer {row % feed.num_answers}) "
            f"is {then:.6f} nats, the policy before its first step gives {now:.6f}: they differ by {difference:.3g}, allowed "
            f"are {allowed:.3g}: rounding in {dtype} moves a token of this model by {noise.token_nats:.2g} nats. Margins would "
            "have started away from 0. The model differs from the one that was scored: set reference.model if that is meant, "
            "else look at the kernels of the two machines."
        )
    return Probed(found.rows, found.worst_nats, found.allowed_nats, noise.token_nats)


def _given(batch: MicroBatch) -> np.ndarray:
    assert batch.reference_nats is not None
    return batch.reference_nats.numpy()


def _nats(engine: DeepSpeedEngine, batch: MicroBatch) -> np.ndarray:
    return engine.forward(batch.sequences.to(engine.device)).float().cpu().numpy()


def _rows(nats: list[np.ndarray], ends: list[np.ndarray]) -> list[np.ndarray]:
    """One array for each answer."""
    return [row for values, stops in zip(nats, ends, strict=True) for row in np.split(values, stops)]
