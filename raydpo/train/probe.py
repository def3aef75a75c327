"""Is the cache this policy's reference? Compare a few cached rows with the trainer's own log-probs before step 1.

Decision: the probe runs on the engine that will train (same kernels, same sharding), over the longest, the shortest and
evenly spaced examples. A fresh policy equals its reference, so any difference beyond the arithmetic is a wrong cache.
"""

from __future__ import annotations

import numpy as np
import torch

from raydpo.batches import collate
from raydpo.errors import ReferenceMismatchError
from raydpo.models.agreement import compare, probe_examples
from raydpo.schema.rank_events import Probed
from raydpo.train.deepspeed_engine import DeepSpeedEngine
from raydpo.train.feed import Feed


@torch.no_grad()
def probe(engine: DeepSpeedEngine, feed: Feed, dtype: str) -> Probed:
    """Every rank scores the same rows (under ZeRO-3 forwards are collective). Raises ReferenceMismatchError."""
    ours: list[np.ndarray] = []
    cached: list[np.ndarray] = []
    examples = probe_examples(feed.table.prompt_lengths + feed.table.answer_lengths.sum(axis=1))
    for example in examples:
        batch = collate(feed.table, [example], feed.answers, feed.lookup, layout=feed.layout)
        assert batch.reference_nats is not None
        nats = engine.forward(batch.sequences.to(engine.device)).float().cpu().numpy()
        ends = np.cumsum(feed.table.loss_lengths[example, : feed.num_answers])[:-1]
        ours += np.split(nats, ends)
        cached += np.split(batch.reference_nats.numpy(), ends)
    found = compare(ours, cached, dtype)
    if found.problem is not None:
        row, now, then, difference, allowed = found.problem
        raise ReferenceMismatchError(
            f"the cached reference of {feed.table.source(examples[row // feed.num_answers])} (answer {row % feed.num_answers}) "
            f"is {then:.6f} nats, the policy before its first step gives {now:.6f}: they differ by {difference:.3g}, allowed "
            f"are {allowed:.3g} in {dtype}. Margins would have started away from 0. The model differs from the one that was "
            "scored: set reference.model if that is meant, else look at the kernels of the two machines."
        )
    return Probed(found.rows, found.worst_nats, found.allowed_nats)
