"""Who the reference is: the identity of its cache, computed from files on disk.

Decision: files are hashed, never names or live tensors, so a re-pushed repository or a swapped file is another reference. An
adapter is its base's files and its own: the same adapter on another base is another reference. What is packed in 4 bits says
something else than its files do, and is another one, too.
"""

from __future__ import annotations

from pathlib import Path

from raydpo.artifacts import CacheIdentity, digest_of, tokenizer_digest, weights_digest
from raydpo.models.resolve import ResolvedModel
from raydpo.schema.rows import LOGPROB_VERSION

NO_ADAPTER = "none"
"""What a full model has in the place of an adapter's digest."""


def digests(found: ResolvedModel) -> tuple[str, str]:
    """(digest of the weights, digest of the adapters on them or NO_ADAPTER). Hashes files."""
    if found.base is None:
        return _packed(weights_digest(found.folder), found), NO_ADAPTER
    weights, below = digests(found.base)
    own = _packed(weights_digest(found.folder), found)
    return weights, own if below == NO_ADAPTER else digest_of([below, own])


def _packed(digest: str, found: ResolvedModel) -> str:
    return digest if found.four_bit is None else digest_of([digest, found.four_bit.described()])


def model_digest(found: ResolvedModel) -> str:
    """One digest of all that decides what a model says: of a full model, of its weights. Hashes files."""
    weights, adapter = digests(found)
    return weights if adapter == NO_ADAPTER else digest_of([weights, adapter])


def reference_identity(
    weights: str, tokenizer: Path, dtype: str, attention: str, use_gpu: bool, adapter: str = NO_ADAPTER
) -> CacheIdentity:
    """Identity of the cache that a reference fills.

    weights, adapter: `digests` of it. attention: with the kind of device it makes a class of kernels.
    """
    return CacheIdentity(
        weights=weights,
        adapter=adapter,
        tokenizer=tokenizer_digest(tokenizer),
        dtype=dtype,
        attention=f"{attention}-{'cuda' if use_gpu else 'cpu'}",
        algorithm=LOGPROB_VERSION[dtype],
    )
