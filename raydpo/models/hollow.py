"""A model without its weights: every module, shape, dtype and tie that loading would give, and where each weight lies.

Comes in: the folder of a model. Goes out: the module, whose weights are one zero that is seen everywhere, and the place of
each in the files. Decision: transformers' own loader runs, on tensors that only remember where they come from, so that names,
dtypes, ties and tables are what they are for a whole model; where it stacks, splits or turns what it read, the place knows, and
where it computes there is none, and the model has to be loaded whole. Price: names of its loader, that a test holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn

from raydpo.models.pretrained import DTYPES, first_that_works, switch_dropout_off
from raydpo.models.quantised import quantisation
from raydpo.models.recipes import Recording
from raydpo.models.slices import Readable, SliceReader, StoredTensor, places_in
from raydpo.models.weightless import NOT_MADE, without_weights

_COPIED = re.compile(r"\.modules_to_save\.[^.]+\.")
"""What PEFT puts into the name of a module that is trained whole, in place of ".original_module."."""


class WholeNeeded(Exception):
    """Why a model cannot be read in parts, as the end of a sentence."""


@dataclass(frozen=True)
class HollowModel:
    """model: in evaluation mode, every dropout at 0. places: of each parameter, by its id."""

    model: Any
    places: Mapping[int, Readable]
    reader: SliceReader

    def places_of(self, module: nn.Module) -> dict[int, Readable]:
        """The same of `module`, which holds the model, for copies that an adapter trains whole as well."""
        named = dict(module.named_parameters(remove_duplicate=False))
        found: dict[int, Readable] = {}
        for name, parameter in named.items():
            original = named.get(_COPIED.sub(".original_module.", name), parameter)
            place = self.places.get(id(parameter)) or self.places.get(id(original))
            if place is not None:
                found[id(parameter)] = place
        return found


def hollow_model(folder: Path, dtype: str, attention: str) -> HollowModel:
    """The causal LM in `folder` on the CPU, without weights. dtype, attention: as of `load_model`.

    Raises WholeNeeded where its weights cannot be read in parts, or it cannot be loaded at all.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    if method := quantisation("the model", folder):
        raise WholeNeeded(f"it is quantised ({method})")
    try:
        files = places_in(folder)
        bare = without_weights(folder)

        def load(implementation: str) -> tuple[Any, dict[str, Any], Recording]:
            return _load(bare, files, DTYPES[dtype], implementation)

        model, missing, recording = load(attention) if attention != "auto" else first_that_works(load, "sdpa", "eager")
    except (*NOT_MADE, StrictDataclassError) as error:
        raise WholeNeeded(f"it cannot be made without them ({type(error).__name__}: {error})") from error
    if missing:
        raise WholeNeeded(f"its files lack {', '.join(sorted(missing)[:3])}")
    _look_at_ties(model)
    reader = SliceReader()
    places = _fill(model, recording, reader)
    model.config.name_or_path = model.name_or_path = str(folder)
    _take_generation_config(model, folder)
    return HollowModel(switch_dropout_off(model).eval(), places, reader)


class _Remembered:
    """A tensor of a file, for transformers' loader: it may be asked for as it is, in a dtype and on a device."""

    def __init__(self, place: StoredTensor, known: dict[int, tuple[Tensor, Readable]]) -> None:
        self._place, self._known = place, known

    def __getitem__(self, _: Any) -> _Remembered:
        return self

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        tensor = torch.empty(self._place.shape, dtype=dtype or self._place.dtype, device="meta")
        self._known[tensor.untyped_storage()._cdata] = (tensor, self._place)
        return tensor


def _load(
    bare: Any, files: Mapping[str, StoredTensor], dtype: torch.dtype, attention: str
) -> tuple[Any, Any, Recording]:
    known: dict[int, tuple[Tensor, Readable]] = {}
    with Recording(known) as recording:
        model, found = type(bare).from_pretrained(
            None,
            config=bare.config,
            state_dict={name: _Remembered(place, known) for name, place in files.items()},
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
    return model, found["missing_keys"], recording


def _look_at_ties(model: Any) -> None:
    """Two matrices in the files where the config names one: whether they are equal is known by reading both."""
    for one, other in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        if model.get_parameter(one) is not model.get_parameter(other):
            raise WholeNeeded(f"its files hold {one} and {other}, which its config.json names as one matrix")


def _fill(model: nn.Module, recording: Recording, reader: SliceReader) -> dict[int, Readable]:
    """Buffers are read, parameters get their shape. Returns the places of parameters."""
    made: dict[int, nn.Parameter] = {}
    places: dict[int, Readable] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in made:
                new = nn.Parameter(_seen_everywhere(parameter), requires_grad=parameter.requires_grad)
                made[id(parameter)], places[id(new)] = new, _place_of(parameter, recording, f"{path}.{name}")
                made[id(new)] = new
            setattr(module, name, made[id(parameter)])
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, name, reader.whole(_place_of(buffer, recording, f"{path}.{name}"), buffer.dtype))
    return places


def _seen_everywhere(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype).expand(like.shape)


def _place_of(tensor: Tensor, recording: Recording, name: str) -> Readable:
    found = recording.recipe(tensor)
    if found is None:
        raise WholeNeeded(f"transformers computes {name} out of tensors of its files, or of none")
    return found


def _take_generation_config(model: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
