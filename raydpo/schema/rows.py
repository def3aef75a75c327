"""What a row is between two stages: columns, units and the key of a row.

An *example* is one prompt with its answers: a pair has two (chosen first, rejected second), labelled and sft data one; the
answer to another prompt may stand after them (raydpo.data.mismatched).
A *row* is one prompt with one answer; its key is the digest of its token ids, of where the answer starts, and of the
answer mask where it has one: which tokens of the answer the loss covers.
Decision: a key holds nothing else, so that order, objective, learning rate and file names never change it.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

EXAMPLES = pa.schema(
    [
        pa.field("prompt_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("answer_ids", pa.list_(pa.list_(pa.int32())), nullable=False),  # pair: [chosen, rejected]
        pa.field("row_keys", pa.list_(pa.string()), nullable=False),  # one an answer
        pa.field("source", pa.string(), nullable=False),  # "file:line", for messages
        pa.field("label", pa.bool_(), nullable=False),  # whether the answer is desirable; true for pairs
        pa.field("weight", pa.float32(), nullable=False),  # factor of the example's loss
    ]
)
"""Token shards: one example a row. Ids include BOS in the prompt and EOS in the answers."""

MASKED_EXAMPLES = EXAMPLES.append(pa.field("answer_masks", pa.list_(pa.list_(pa.bool_())), nullable=False))
"""Token shards with a mask of each answer, true where the loss covers a token; an empty list: all of them. A shard without
a mask is written as `EXAMPLES`, byte for byte as before there were masks."""

LOGPROBS = pa.schema(
    [
        pa.field("row_key", pa.string(), nullable=False),
        pa.field(
            "token_nats", pa.list_(pa.float32()), nullable=False
        ),  # log-prob of each answer token in the loss, <= 0
        pa.field("num_tokens", pa.int32(), nullable=False),  # answer tokens in the loss
    ]
)
"""Reference shards: one row a row key."""

LOGPROB_VERSION = {"float32": "answer-logprobs-2", "bfloat16": "answer-logprobs-3"}
"""Version of the log-prob algorithm by dtype: part of a cache's identity. Raise it where values may change."""

KEY_LENGTH = 32


def row_key(
    prompt_ids: np.ndarray | list[int], answer_ids: np.ndarray | list[int], mask: np.ndarray | list[bool] | None = None
) -> str:
    """Key of one row: 32 hex digits over (answer start, token ids, mask). Equal ids with another split differ.

    mask: which answer tokens the loss covers; None, or all of them, gives the key of a row without a mask.
    """
    prompt = np.asarray(prompt_ids, dtype="<i4")
    answer = np.asarray(answer_ids, dtype="<i4")
    covered = None if mask is None else np.asarray(mask, dtype=bool)
    assert covered is None or covered.shape == answer.shape, f"{len(covered)} marks for {len(answer)} tokens"
    is_whole = covered is None or covered.all()
    parts = [b"raydpo-row-1" if is_whole else b"raydpo-row-masked-1", len(prompt).to_bytes(8, "little")]
    parts += [prompt.tobytes(), answer.tobytes()]
    parts += [] if covered is None or is_whole else [covered.tobytes()]
    digest = hashlib.sha256(b"".join(parts))
    return digest.hexdigest()[:KEY_LENGTH]
