"""An adapter and its base -> one model without an adapter, in memory or as a folder.

Comes in: a base in float32 and the folder of a PEFT adapter. Goes out: the base with the adapter in its weights.
Decision: the merged model has to say what base and adapter say together, and is asked: both score a row of ids, and a
difference is an error, of whichever kind the adapter is. A matrix that two modules share and the adapter changes in one of
them becomes two. Price: two forwards of a short row at every merge.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raydpo.errors import ConfigError
from raydpo.models.adapter_files import num_rows, shapes
from raydpo.models.carried_files import add_ends, carry_config, carry_files
from raydpo.models.four_bit import packing_of
from raydpo.models.resolve import ResolvedModel
from raydpo.models.shard_files import SHARD_BYTES

ALLOWED_NATS = 1e-3
"""Largest difference of a log-prob between a merged model and its adapter beside its base, in float32."""
_NUM_IDS = 16
_LACKING = "missing adapter keys"
"""What PEFT says of an adapter whose file lacks tensors, and goes on."""


def merge_adapter(model: Any, adapter: Path) -> Any:
    """`model` (float32) with the adapter in its weights. Raises ConfigError where the two do not fit, or merging changes it."""
    _resize(model, adapter)
    adapted = with_adapter(model, adapter)
    ids = _ids(adapted)
    before = _nats(adapted, ids)
    _untie(adapted)
    try:
        merged = adapted.merge_and_unload()
    except (ValueError, NotImplementedError, AttributeError) as error:
        raise unmergeable(adapter, f"PEFT cannot merge it: {error}") from error
    _say_untied(merged)
    after = _nats(merged, ids)
    if not (apart := float((after - before).abs().max())) <= ALLOWED_NATS:
        raise unmergeable(
            adapter,
            f"merged, it gives log-probs that are up to {apart:.3g} nats from those that it gives beside its base (allowed "
            f"are {ALLOWED_NATS:g})",
        )
    return merged.requires_grad_(True)


def with_adapter(model: Any, adapter: Path) -> Any:
    """`model` with the adapter beside its weights, in evaluation mode. Raises ConfigError where the two do not fit."""
    from peft import PeftModel

    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"the adapter in {adapter} does not fit its base, a {type(model).__name__}: {error}. Nothing was loaded. Is the "
            "base that its adapter_config.json names the one that it was trained on?"
        ) from error
    if lacking := [text for text in map(str, (warning.message for warning in warned)) if _LACKING in text]:
        raise ConfigError(
            f"{adapter} is not whole: {lacking[0][:300]} What it lacks would have been as before any training. Nothing was "
            "loaded. Save the adapter again."
        )
    return adapted


def write_merged(found: ResolvedModel, out: Path, dtype: str, max_bytes: int = SHARD_BYTES) -> None:
    """Write an adapter with its base to `out` as a plain transformers folder in `dtype`, with the tokenizer of the adapter
    where it has one, and with config keys, processors and generation config of the base.

    Files have at most `max_bytes`. A larger base is read, merged and written tensor by tensor where that can be done."""
    assert found.base is not None
    base = found.whole().here()
    _write_weights(found, out, dtype, max_bytes)
    carry_config(base, out)
    carry_files(base, out)
    carry_files(found.here(), out)


def _write_weights(found: ResolvedModel, out: Path, dtype: str, max_bytes: int) -> None:
    from raydpo.models.hollow import WholeNeeded
    from raydpo.models.pretrained import load_model
    from raydpo.models.streamed_merge import stream_merged

    if sum(path.stat().st_size for path in found.whole().here().glob("*.safetensors")) > max_bytes:
        with contextlib.suppress(WholeNeeded):
            stream_merged(found, out, dtype, max_bytes)
            return
    load_model(found, dtype, "auto").save_pretrained(out, max_shard_size=max_bytes)


def merge_lora(
    base: Path, adapter: Path, out: Path, dtype: str, end_ids: Sequence[int] = (), max_bytes: int = SHARD_BYTES
) -> None:
    """`write_merged` for the adapter on the model in `base`, whatever base it names. end_ids: as of `add_ends`."""
    below = ResolvedModel(str(base), None, base, four_bit=packing_of(adapter))
    write_merged(ResolvedModel(str(adapter), None, adapter, below), out, dtype, max_bytes)
    add_ends(out, end_ids)


def tied_modules(adapted: Any) -> Iterator[tuple[str, Any, list[str]]]:
    """(name, adapted module, names of others with the same matrix) of each adapted module that does not own it alone."""
    owners: dict[int, list[str]] = {}
    for name, module in adapted.named_modules(remove_duplicate=False):
        for _, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(plain_name(name))
    for name, module in adapted.named_modules():
        below = module.original_module if is_copied(module) else module
        below = module.get_base_layer() if hasattr(module, "get_base_layer") else below
        if below is not module:
            own = below.named_parameters(recurse=False)
            others = {owner for _, parameter in own for owner in owners[id(parameter)]}
            if rest := sorted(others - {plain_name(name)}):
                yield plain_name(name), module, rest


def is_copied(module: Any) -> bool:
    """Whether PEFT trains a copy of the module that stands here (modules_to_save)."""
    return "original_module" in getattr(module, "_modules", {})


def plain_name(name: str) -> str:
    """Name of a module or a parameter without what PEFT puts around it."""
    found = name.removeprefix("base_model.model.").replace(".base_layer", "")
    return re.sub(r"\.(original_module|modules_to_save\.\w+)(?=\.|$)", "", found)


def _untie(adapted: Any) -> None:
    """Give adapted modules that share a matrix one of their own."""
    for _, module, _ in list(tied_modules(adapted)):
        if is_copied(module):  # its original goes when it is merged
            continue
        base = module.get_base_layer()
        base.weight = torch.nn.Parameter(base.weight.detach().clone(), requires_grad=False)


def _say_untied(model: Any) -> None:
    """Where embedding and head are two matrices now, let the config say so."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.get_text_config().tie_word_embeddings = False
        model.config.tie_word_embeddings = False


def _resize(model: Any, adapter: Path) -> None:
    """Give the base as many rows as the adapter's own embedding has."""
    rows = num_rows(adapter)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if rows is None or rows == embedding.weight.shape[0]:
        return
    is_tied = head is None or head.weight is embedding.weight
    if not is_tied and not any(
        shape[0] == rows for name, shape in shapes(adapter).items() if "lora_" not in name and _is_of(model, head, name)
    ):
        raise ConfigError(
            f"{adapter} brings an embedding of {rows} rows for a base of {embedding.weight.shape[0]}, and no head of as many: "
            "the rows of the head would have been random. Nothing was loaded. Save the adapter with save_embedding_layers=True."
        )
    model.resize_token_embeddings(rows, mean_resizing=False)


def _is_of(model: Any, module: Any, name: str) -> bool:
    own = next(place for place, found in model.named_modules() if found is module)
    return bool(plain_name(name).removesuffix(".weight") == own)


def _ids(adapted: Any) -> Tensor:
    """A row of ids, spread evenly over the vocabulary: [1, L]."""
    rows = adapted.get_base_model().get_input_embeddings().weight.shape[0]
    return torch.linspace(0, rows - 1, min(_NUM_IDS, rows)).round().long()[None]


@torch.no_grad()
def _nats(model: Any, ids: Tensor) -> Tensor:
    """Log-probs of the ids by one forward: [L - 1], float64; of a classifier its outputs."""
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0].double()
    if logits.ndim == 1:
        return logits
    logits = logits[:-1]
    found: Tensor = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return found


def unmergeable(adapter: Path, why: str) -> ConfigError:
    """The error of an adapter that merging would change."""
    return ConfigError(
        f"the adapter in {adapter} cannot be used as a model: {why}. What would have been trained or scored is another model "
        "than the adapter. Nothing was loaded. Give the full model instead."
    )
