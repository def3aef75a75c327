"""Who the reference is: the identity of its cache, computed from files on disk.

Decision: files are hashed, never names or live tensors, so a re-pushed repository or a swapped file is another reference.
"""

from __future__ import annotations

import json
from pathlib import Path

from raydpo.artifacts import CacheIdentity, tokenizer_digest, weights_digest
from raydpo.models.resolve import ResolvedModel
from raydpo.schema import LOGPROB_VERSION

NO_ADAPTER = "none"


def model_digests(folder: Path) -> tuple[str, str]:
    """(weights, adapter) digests of a model folder. An adapter folder counts with the base that it names."""
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return weights_digest(folder), NO_ADAPTER
    base = Path(json.loads(adapter.read_text())["base_model_name_or_path"])
    return weights_digest(base), weights_digest(folder)


def reference_identity(
    reference: ResolvedModel, tokenizer: Path, dtype: str, attention: str, use_gpu: bool
) -> CacheIdentity:
    """Identity of the cache that `reference` fills. `attention` is a class of kernels: backend and kind of device."""
    weights, adapter = model_digests(reference.folder)
    return CacheIdentity(
        weights=weights,
        adapter=adapter,
        tokenizer=tokenizer_digest(tokenizer),
        dtype=dtype,
        attention=f"{attention}-{'cuda' if use_gpu else 'cpu'}",
        algorithm=LOGPROB_VERSION,
    )
