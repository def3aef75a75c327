"""Who the reference is: the identity of its cache, computed from files on disk.

Decision: files are hashed, never names or live tensors, so a re-pushed repository or a swapped file is another reference.
"""

from __future__ import annotations

from pathlib import Path

from raydpo.artifacts import CacheIdentity, tokenizer_digest
from raydpo.schema import LOGPROB_VERSION

NO_ADAPTER = "none"
"""An adapter is refused as a reference (see models.load); the field keeps identities readable when that changes."""


def reference_identity(weights: str, tokenizer: Path, dtype: str, attention: str, use_gpu: bool) -> CacheIdentity:
    """Identity of the cache that a reference fills.

    weights: digest of its weight files. attention: with the kind of device it makes a class of kernels.
    """
    return CacheIdentity(
        weights=weights,
        adapter=NO_ADAPTER,
        tokenizer=tokenizer_digest(tokenizer),
        dtype=dtype,
        attention=f"{attention}-{'cuda' if use_gpu else 'cpu'}",
        algorithm=LOGPROB_VERSION,
    )
