"""What a policy says of a few rows: log-probs and likeliest tokens, for whoever has to prove that it holds the same policy.

Comes in: the engine that trains, and its rows. Goes out: a `PolicyProbe`. Decision: the rows are the shortest, the longest and
evenly spaced ones of the training split, the same at every step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from raydpo.artifacts import write_json
from raydpo.batches import lay_out
from raydpo.models.agreement import probe_examples
from raydpo.schema.rank_events import PolicyProbe
from raydpo.schema.samples import Score
from raydpo.train.deepspeed_engine import DeepSpeedEngine
from raydpo.train.feed import Feed


@torch.no_grad()
def policy_probe(engine: DeepSpeedEngine, feed: Feed) -> PolicyProbe:
    """Every rank scores the same examples (under ZeRO-3 forwards are collective)."""
    sequences, found = [], []
    for example in probe_examples(feed.table.prompt_lengths + feed.table.answer_lengths.sum(axis=1)):
        answers = feed.table.answer_ids(example)[: feed.num_answers]
        # Whole answers, whatever the loss covers: a copy of the policy scores them likewise.
        batch = lay_out([(feed.table.prompt_ids(example), answer) for answer in answers], feed.layout)
        scores = engine.forward(batch.to(engine.device), "likeliest").float().cpu().numpy()
        found += np.split(scores, np.cumsum([len(answer) for answer in answers])[:-1], axis=1)
        prompt = tuple(feed.table.prompt_ids(example).tolist())
        sequences += [(prompt, tuple(answer.tolist())) for answer in answers]
    nats, top_nats, top_ids = (tuple(tuple(scores[row].tolist()) for scores in found) for row in range(3))
    return PolicyProbe(Score(tuple(sequences)), nats, tuple(tuple(map(int, ids)) for ids in top_ids), top_nats)


def write_probe_rows(path: Path, probe: PolicyProbe) -> None:
    """Keep sequences and log-probs in a file."""
    write_json(path, {"sequences": probe.request.sequences, "nats": probe.nats})
