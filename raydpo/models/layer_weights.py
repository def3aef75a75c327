"""The weights of a decoder, read from its safetensors one layer at a time: a model larger than the device that runs it.

Comes in: a model folder. Goes out: the module without the weights of its decoder layers, which are there only while
`holding` is open for one. Embedding, norms and head stay; what text does not reach is never read. Decision: transformers
itself converts and casts what is read, as it does for a whole model, so a layer has the same bytes either way. Price: a layer
is read again each time that it is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.models.auto_class import auto_class
from raydpo.models.config_file import config_of
from raydpo.models.memory import decoder_layers
from raydpo.models.pretrained import first_that_works, not_loadable, switch_dropout_off
from raydpo.models.text_part import text_body, text_head
from raydpo.models.weight_files import WeightFiles

_STAYS = -1
"""Number of the part of the weights that is always there, in place of a layer's."""


class LayerWeights:
    """A causal LM whose decoder layers have weights only while they are held.

    model: the module, in evaluation mode. layers: its decoder layers, in order. files: where they are read from.
    Raises ConfigError for a folder that lacks weights, NotImplementedError with a sentence for a model that has no layers
    which can be held one by one.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, attention: str, device: torch.device | str) -> None:
        self._folder, self._dtype, self._device = folder, dtype, device
        self.model = _without_weights(folder, dtype, attention)
        reached = [*text_body(self.model).modules(), *text_head(self.model).modules()]
        self.layers = [layer for layer in decoder_layers(self.model) if layer in reached]
        if not self.layers:
            raise NotImplementedError(f"transformers does not list the layers of {type(self.model).__name__}")
        self.files = WeightFiles(folder)
        targets = _targets(self.model, self.files)
        places = {module: name for name, module in self.model.named_modules()}
        self._keys = _parted(targets, [places[layer] for layer in self.layers], {places[module] for module in reached})
        self._refuse_shared(tuple(f"{places[layer]}." for layer in self.layers))
        self._empty = [dict(layer.named_parameters()) for layer in self.layers]
        self._load(_STAYS)
        self._fill(set(targets.values()))
        inside = {module for layer in self.layers for module in layer.modules()}
        self._refuse_lacking(module for module in reached if module not in inside)

    @property
    def stays_bytes(self) -> int:
        """Bytes of what is read once, in the files."""
        return self.files.num_bytes(self._keys[_STAYS])

    def layer_bytes(self, number: int) -> int:
        """Bytes of a layer, in the files."""
        return self.files.num_bytes(self._keys[number])

    @contextmanager
    def holding(self, number: int) -> Iterator[None]:
        """Layer `number` has its weights on the device while this is open. The kernel fetches the next one meanwhile."""
        layer = self.layers[number]
        self._load(number)
        self._refuse_lacking(layer.modules())
        layer.to(self._device).requires_grad_(False)
        self.files.read_ahead(self._keys[(number + 1) % len(self.layers)])
        try:
            yield
        finally:
            for name, parameter in self._empty[number].items():
                _put(layer, name, parameter)

    def _load(self, part: int) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        exempt = getattr(self.model, "_keep_in_fp32_modules_strict", None) or ()
        plan = dict.fromkeys(exempt, torch.float32) if self._dtype == torch.bfloat16 else {}
        mapping = get_model_conversion_mapping(self.model)
        settings = LoadStateDictConfig(dtype=self._dtype, dtype_plan=plan, weight_mapping=mapping)
        convert_and_load_state_dict_in_model(self.model, self.files.slices(self._keys[part]), settings)

    def _fill(self, there: set[str]) -> None:
        """Tie embedding and head where the files have one of both, compute tables that no file has, move all to the device."""
        self.model.tie_weights(missing_keys=set(self.model.state_dict()) - there, recompute_mapping=False)
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            tensor._is_hf_initialized = True  # what has it is not drawn at random
        for name, table in list(self.model.named_non_persistent_buffers()):
            _put(self.model, name, torch.empty_like(table, device="cpu"))
        self.model.initialize_weights()
        self.model.requires_grad_(False)
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            if not tensor.is_meta:
                tensor.data = tensor.data.to(self._device)

    def _refuse_shared(self, prefixes: tuple[str, ...]) -> None:
        tied = getattr(self.model, "all_tied_weights_keys", {})
        if shared := sorted(name for pair in tied.items() for name in pair if name.startswith(prefixes)):
            raise NotImplementedError(f"layers of {type(self.model).__name__} share weights ({shared[0]})")

    def _refuse_lacking(self, modules: Iterable[nn.Module]) -> None:
        """Raise ConfigError where a weight of these modules did not come with the files."""
        for module in modules:
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if tensor.is_meta:
                    raise not_loadable(self._folder, f"the files lack {name} of a {type(module).__name__}")


def _without_weights(folder: Path, dtype: torch.dtype, attention: str) -> Any:
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar a layer would tear the driver's apart

    def made(implementation: str) -> Any:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        with torch.device("meta"):
            kind = auto_class(config_of("the model", folder))
            return kind.from_config(config, dtype=dtype, attn_implementation=implementation)

    try:
        model = made(attention) if attention != "auto" else first_that_works(made, "sdpa", "eager")
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise not_loadable(folder, error) from error
    return switch_dropout_off(model.eval())


def _targets(model: Any, files: Iterable[str]) -> dict[str, str]:
    """Tensor of the files -> the weight of the model that is made of it, the first where it makes several."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping, there = get_model_conversion_mapping(model), model.state_dict()
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    found = {}
    for key in files:
        name, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, there)
        if name not in there and key in there:
            name, _ = rename_source_key(key, [], [], model.base_model_prefix, there)
        if name in there:
            found[key] = name
    return found


def _parted(targets: Mapping[str, str], layers: Sequence[str], reached: Set[str]) -> dict[int, list[str]]:
    """Part -> tensors of the files in it: the number of a layer, or `_STAYS`. What is not `reached` is in no part."""
    found: dict[int, list[str]] = {part: [] for part in range(_STAYS, len(layers))}
    numbers = {f"{name}.": number for number, name in enumerate(layers)}
    for key, target in targets.items():
        if target.rpartition(".")[0] in reached:
            part = next((number for prefix, number in numbers.items() if target.startswith(prefix)), _STAYS)
            found[part].append(key)
    return found


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Give `module` another parameter or buffer in the place of `name`, which may be dotted."""
    place, _, own = name.rpartition(".")
    setattr(module.get_submodule(place), own, tensor)
