"""A small model of the same class, with at most two decoder layers of every kind, to try out what depends on the code alone.

Comes in: a model, with weights or without. Goes out: another one, drawn at random, whose layers are those of the first, and for
how many of its layers each of them stands. Decision: a kind is what modules, shapes and settings a layer has, so that it is
known for any family without a table, and a copy is compared with the model layer by layer; where no config makes such a copy
there is none. Two of a kind, because what a layer adds is seen between two of them. Price: a rank makes two layers of weights.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from raydpo.models.auto_class import auto_class
from raydpo.models.matrix_kinds import EXPERTS
from raydpo.models.memory import Scale, decoder_layers
from raydpo.models.pretrained import switch_dropout_off
from raydpo.models.text_part import text_body, text_head

ROWS = 512
"""Of the copy's vocabulary; of one that is smaller, its own."""
SEED = 0
_LAYERS, _VOCABULARY = "num_hidden_layers", "vocab_size"
_FAILURES = (
    *(OSError, LookupError, ImportError, RuntimeError, TypeError, ValueError, AttributeError, AssertionError),
    *(ArithmeticError, StrictDataclassError),
)

_MODES = ("training", "gradient_checkpointing")
Kind = tuple[Any, ...]


class NoSmallCopy(Exception):
    """Why there is none, as the end of a sentence."""


def small_copy(model: Any) -> Any:
    """A model of the class of `model` on the CPU, its dtype and attention, in evaluation mode, with random weights that make
    differences visible, the same in every process. Raises NoSmallCopy."""
    kinds = _kinds(text_layers(model), text_layers(model))
    if not kinds:
        raise NoSmallCopy(f"transformers lists no layers of {type(model).__name__}")
    last_two = sorted(at for kind in dict.fromkeys(kinds) for at in _places(kinds, kind)[-2:])
    first_two = max(_places(kinds, kind)[:2][-1] for kind in dict.fromkeys(kinds))
    for chosen in (last_two, list(range(first_two + 1))):
        for rows in (ROWS, None):
            try:
                copy = _made(model, chosen, rows)
            except _FAILURES:
                continue
            if _kinds(text_layers(copy), text_layers(model)) == [kinds[at] for at in chosen]:
                return copy
    raise NoSmallCopy(f"no config of {type(model).__name__} gives its layers in a model of fewer")


def scale_between(copy: Any, model: Any) -> Scale:
    """For how many layers of `model` each of `copy` stands, adapters on them included. Raises NoSmallCopy where they differ."""
    ours, theirs = (_kinds(text_layers(each), text_layers(model)) for each in (copy, model))
    missing = Counter(theirs)
    missing.subtract(ours)
    if set(ours) != set(theirs) or min(missing.values()) < 0:
        raise NoSmallCopy("the adapter treats its layers in another way")
    further = [missing[kind] if ours.index(kind) == at else 0 for at, kind in enumerate(ours)]
    return Scale(len(decoder_layers(model)), tuple(further), text_head(_plain(model)).weight.shape[0])


def text_layers(model: Any) -> list[nn.Module]:
    """The decoder layers that text goes through."""
    return decoder_layers(text_body(_plain(model)))


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _places(kinds: Sequence[Kind], kind: Kind) -> list[int]:
    return [at for at, found in enumerate(kinds) if found == kind]


def _kinds(layers: Sequence[nn.Module], whole: Sequence[nn.Module]) -> list[Kind]:
    """The kind of each of `layers`. whole: the layers that say which numbers are but a layer's place."""
    settings = [dict(_settings(layer)) for layer in whole]
    placed = {
        key
        for key, value in (settings[0].items() if len(settings) > 1 else ())
        if _is_count(value)
        and all(_is_count(own.get(key)) and own[key] - at == value for at, own in enumerate(settings))
    }
    return [(_structure(layer), tuple(s for s in _settings(layer) if s[0] not in placed)) for layer in layers]


def _structure(layer: nn.Module) -> Kind:
    modules = tuple((name, type(module).__qualname__) for name, module in layer.named_modules())
    return modules, tuple((name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in layer.named_parameters())


def _settings(layer: nn.Module) -> Iterator[tuple[tuple[str, str], Any]]:
    """((module, name), value) of every flag, count and text that a module holds. Other numbers change values alone."""
    for path, module in layer.named_modules():
        for name, value in sorted(vars(module).items()):
            if not name.startswith("_") and name not in _MODES and isinstance(value, bool | int | str | None):
                yield (path, name), value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _made(model: Any, chosen: Sequence[int], rows: int | None) -> Any:
    """A model of the layers `chosen` of `model`; rows: of its vocabulary at most."""
    config = _config(model, chosen, rows)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        copy = auto_class(config.to_dict()).from_config(
            config,
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
            trust_remote_code=False,
        )
        _give_opinions(copy)
    if type(copy) is not type(model):
        raise TypeError
    return switch_dropout_off(copy).eval()


def _config(model: Any, chosen: Sequence[int], rows: int | None) -> Any:
    whole = model.config
    described = whole.to_dict()
    text = whole.get_text_config()
    part = next((name for name in whole.sub_configs if getattr(whole, name, None) is text), None)
    place = described if part is None else described[part]
    names = dict(getattr(text, "attribute_map", {}))
    layers, vocabulary = names.get(_LAYERS, _LAYERS), names.get(_VOCABULARY, _VOCABULARY)
    count = len(text_layers(model))
    for name, value in place.items():
        if isinstance(value, list) and len(value) == count:
            place[name] = [value[at] for at in chosen]
    place[layers] = len(chosen)
    if rows is not None and place.get(vocabulary, 0) > rows:
        place[vocabulary] = rows
        for name, value in place.items():  # ids beyond the rows have no embedding
            if name.endswith("_token_id") and _is_count(value) and value >= rows:
                place[name] = 0
    return type(whole).from_dict(described)


def _give_opinions(model: nn.Module) -> None:
    """Matrices as large as those of a trained model: fresh ones make every token about equally likely."""
    from transformers.pytorch_utils import Conv1D

    for path, module in model.named_modules():
        for name, weight in module.named_parameters(recurse=False):
            is_matrix = isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | Conv1D) and name == "weight"
            if is_matrix or (weight.ndim == 3 and EXPERTS in f"{path}.{name}"):
                inputs = weight.shape[0] if isinstance(module, Conv1D) else math.prod(weight.shape[1:])
                inputs = weight.shape[-1] if weight.ndim == 3 and not isinstance(module, nn.Conv1d) else inputs
                nn.init.normal_(weight, std=1 / math.sqrt(inputs))
