"""What a row of a round is between two stages: columns of the samples, the scores and the pairs of a prompt.

Decision: a text that may be messages (the prompt of a pair and its answers) is one column of text, messages as JSON text in
it, which is how a file of cells holds them and how data are read anyway: no schema fits all messages.
"""

from __future__ import annotations

import pyarrow as pa

_IDS = pa.list_(pa.int32())
_SAMPLE = pa.struct([pa.field("ids", _IDS), pa.field("text", pa.string()), pa.field("ending", pa.string())])

SAMPLES = pa.schema(
    [
        pa.field("prompt", pa.string(), nullable=False),  # key of the prompt
        pa.field("version", pa.int32(), nullable=False),  # of the policy that gave them
        pa.field("samples", pa.list_(_SAMPLE), nullable=False),  # ids with end-of-sequence; ending: eos, stop, length
    ]
)
"""Samples of a round or an evaluation: one prompt a row."""

SCORES = pa.schema(
    [
        pa.field("judged", pa.string(), nullable=False),  # digest of the prompt and the answers that were shown
        pa.field("scores", pa.list_(pa.float64())),  # one an answer; null where the judge failed
        pa.field("reason", pa.string(), nullable=False),  # why it failed
    ]
)
"""Scores: one prompt a row, in the order of the samples."""

PAIRS = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("prompt", "chosen", "rejected")),
        *(pa.field(f"{name}_ids", _IDS, nullable=False) for name in ("prompt", "chosen", "rejected")),
        pa.field("tokenizer", pa.string(), nullable=False),  # digest of the tokenizer of the ids
        pa.field("round", pa.int32(), nullable=False),  # from 0
        pa.field("version", pa.int32(), nullable=False),  # of the policy that sampled
    ]
)
"""Pairs of a round: one preference record a row, with one of the two below."""

SCORED_PAIRS = pa.schema([*PAIRS, *(pa.field(f"{side}_score", pa.float64()) for side in ("chosen", "rejected"))])
"""Pairs of scored answers."""

SPIN_PAIRS = pa.schema([*PAIRS, pa.field("chosen_mask", pa.list_(pa.int8()))])
"""Pairs of the data's own answer and a sample; the mask: 1 for tokens that the loss covers, null for all."""
