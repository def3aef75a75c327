"""Is the cache this policy's reference? Compare a few cached rows with the trainer's own log-probs before step 1.

Decision: the probe runs on the engine that will train (same kernels, same sharding), over the longest, the shortest and
evenly spaced examples. A fresh policy equals its reference, so any difference beyond the arithmetic is a wrong cache.
"""

from __future__ import annotations

import numpy as np
import torch

from raydpo.batches import collate
from raydpo.errors import ReferenceMismatchError
from raydpo.models.probe import probe_examples, tolerance_nats
from raydpo.schema.training import Probed
from raydpo.train.engine import Engine
from raydpo.train.feed import Feed


@torch.no_grad()
def probe(engine: Engine, feed: Feed, dtype: str) -> Probed:
    """Every rank scores the same rows (under ZeRO-3 forwards are collective). Raises ReferenceMismatchError."""
    lengths = feed.table.prompt_lengths + feed.table.answer_lengths.sum(axis=1)
    worst, allowed, rows = 0.0, tolerance_nats(dtype, np.zeros(1))[0], 0
    for example in probe_examples(lengths):
        batch = collate(feed.table, [example], feed.num_answers, feed.lookup)
        ours = engine.forward(batch.sequences.to(engine.device)).cpu().double()
        assert batch.reference_nats is not None
        sums = torch.zeros(2, batch.sequences.num_sequences, dtype=torch.float64)
        sums[0].index_add_(0, batch.sequences.sequences, ours)
        sums[1].index_add_(0, batch.sequences.sequences, batch.reference_nats.double())
        differences = (sums[0] - sums[1]).abs().numpy()
        limits = tolerance_nats(dtype, sums[1].numpy())
        rows += len(differences)
        if not (differences <= limits).all():
            at = int(np.argmax(differences - limits))
            raise ReferenceMismatchError(
                f"the cached reference of {feed.table.source(example)} (answer {at}) is {sums[1][at]:.6f} nats, the policy "
                f"before its first step gives {sums[0][at]:.6f}: they differ by {differences[at]:.3g}, allowed are "
                f"{limits[at]:.3g} in {dtype}. Margins would have started away from 0. The model differs from the one that "
                "was scored: set reference.model if that is meant, else look at the kernels of the two machines."
            )
        if differences.max() >= worst:
            worst, allowed = float(differences.max()), float(limits[differences.argmax()])
    return Probed(rows, worst, float(allowed))
