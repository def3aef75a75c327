"""The model of a run without its weights: how many there are of each kind, and copies of a few layers to trace.

Comes in: the folder of a config.json, and what `train.lora` asks for. Goes out: counts of the model on the meta device, and
fake copies, which have shapes and no values. Decision: the model's own class makes its modules and PEFT its adapter, as at a
real start, so that nothing is derived from names; the price is seconds for a model of many layers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from raydpo.errors import ConfigError
from raydpo.models.auto_class import auto_class
from raydpo.models.lora import add_lora
from raydpo.models.matrix_kinds import kind_of_matrix
from raydpo.models.memory import decoder_layers
from raydpo.models.pretrained import DTYPES, switch_dropout_off
from raydpo.models.text_part import freeze_what_text_does_not_reach, text_head
from raydpo.models.work import TOKENS, Work, work_of

Lora = Mapping[str, Any] | None
"""Arguments of `add_lora`."""
_FULL_DEPTH = 6
"""Layers of a model that is traced whole."""


@dataclass(frozen=True)
class Skeleton:
    """Numbers of weights, counted on the meta device; tied ones once.

    trained, frozen: with and without a gradient.
    by_kind: of each kind of `kind_of_matrix`, adapters among "adapter".
    sizes: of each trained tensor; largest: of the largest.
    head: of the trained head, 0 where it is not trained.
    is_tied: whether the head is the embedding, too.
    base: of the model without an adapter.
    num_layers: decoder layers.
    key_value_numbers: numbers that a cached token takes in all layers (keys and values).
    vocabulary: rows of the head; hidden: numbers of a hidden state.
    layer: of the largest decoder layer without an adapter; outside: of what is in no decoder layer.
    linear: of the base's linear layers but the head, which `train.lora.quantize_base` packs.
    work: FLOPs of a forward.
    """

    trained: int
    frozen: int
    by_kind: Mapping[str, int]
    sizes: tuple[int, ...]
    largest: int
    head: int
    is_tied: bool
    base: int
    num_layers: int
    key_value_numbers: int
    vocabulary: int
    hidden: int
    layer: int
    outside: int
    linear: int
    work: Work

    @property
    def total(self) -> int:
        return self.trained + self.frozen


def skeleton_of(folder: Path, lora: Lora = None) -> Skeleton:
    """Count the weights of the model in `folder`. Raises ConfigError where its class cannot be made from its config alone."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = _made(folder, _config(folder), "float32")
        base = sum(p.numel() for p in model.parameters())
        layers = [sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(model)]
        work, linear = _work(model), _linear(model)
        inner, config = model, model.config.get_text_config()
        model = _adapted(model, lora)
    head, embedding = text_head(inner).weight, inner.get_input_embeddings().weight
    counts: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        counts["adapter" if ".lora_" in name else kind_of_matrix(name)] += weight.numel()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Skeleton(
        trained=sum(size for size, is_trained in sizes if is_trained),
        frozen=sum(size for size, is_trained in sizes if not is_trained),
        by_kind=dict(counts),
        sizes=tuple(size for size, is_trained in sizes if is_trained),
        largest=max((size for size, is_trained in sizes if is_trained), default=0),
        head=head.numel() * head.requires_grad,
        is_tied=head is embedding,
        base=base,
        num_layers=int(config.num_hidden_layers),
        key_value_numbers=_key_value_numbers(config),
        vocabulary=head.shape[0],
        hidden=head.shape[1],
        layer=max(layers, default=base),
        outside=base - sum(layers),
        linear=linear,
        work=work,
    )


def fake_copy(folder: Path, num_layers: int, dtype: str, lora: Lora) -> Any:
    """The model in `folder` cut to `num_layers` layers, in training mode, to be used inside of `without_values`."""
    config = _config(folder)
    _cut(config.get_text_config(), num_layers)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = _adapted(_made(folder, config, dtype), lora).train()
        for name, weight in model.named_parameters():
            if ".lora_" in name:  # PEFT leaves those of a model without values in float32
                weight.data = weight.data.to(DTYPES[dtype])
    return model


def lift(model: Any) -> None:
    """Have the tensors of a model on the meta device be fake ones of the CPU. Inside of `without_values`."""
    lifted: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in lifted:
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_weight = isinstance(tensor, torch.nn.Parameter)
            lifted[id(tensor)] = torch.nn.Parameter(made, tensor.requires_grad) if is_weight else made
        return lifted[id(tensor)]

    for module in model.modules():
        plain = ((name, value) for name, value in vars(module).items() if isinstance(value, torch.Tensor))
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False), *plain)
        for name, tensor in own:
            setattr(module, name, fake(tensor))


@contextmanager
def without_values() -> Iterator[None]:
    """Tensors that are made here have shapes and take no memory. A question that needs values is answered with false, or 1."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.random.fork_rng(devices=[]), FakeTensorMode(), _Answers():  # type: ignore[no-untyped-call]
        yield


class _Answers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What a model asks of the values of tensors that have none: whether a mask is all ones, for instance."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return False if args[0].dtype == torch.bool else 1
        return func(*args, **(kwargs or {}))


def depths(folder: Path) -> tuple[int, ...]:
    """Numbers of layers to trace: all of them, or two, from which the cost of more follows in a straight line.

    Between the two lies one round of the layers' kinds (sliding and full attention, dense and experts).
    """
    config = _config(folder).get_text_config()
    num_layers = int(config.num_hidden_layers)
    lists = [value for value in vars(config).values() if isinstance(value, list) and len(value) == num_layers]
    first = int(getattr(config, "first_k_dense_replace", None) or 0)
    period = math.lcm(_period(lists, first, num_layers), int(getattr(config, "decoder_sparse_step", None) or 1))
    short = max(
        first + period, 2
    )  # the input of a first layer lives in what came before it, that of the second beside it
    if num_layers <= _FULL_DEPTH or short + period >= num_layers:
        return (num_layers,)
    return short, short + period


def _period(lists: list[list[Any]], first: int, num_layers: int) -> int:
    """After how many layers their kinds repeat, from layer `first` on."""
    rounds = range(1, num_layers + 1)
    return next(p for p in rounds if all(kinds[first + p :] == kinds[first : num_layers - p] for kinds in lists))


def _cut(config: Any, num_layers: int) -> None:
    whole = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == whole:
            setattr(config, name, value[:num_layers])
    config.num_hidden_layers = num_layers


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _unknown(folder, error) from error


def _made(folder: Path, config: Any, dtype: str) -> Any:
    try:
        read = auto_class(config.to_dict()).from_config
        model = read(config, dtype=DTYPES[dtype], attn_implementation="eager", trust_remote_code=False)
    except (OSError, LookupError, ImportError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise _unknown(folder, error) from error
    return switch_dropout_off(model)


def _unknown(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"model.path: the model in {folder} could not be made from its config.json without weights ({error}), so nothing is "
        "known of its size and nothing was planned. Allowed: an architecture that transformers knows without remote code."
    )


def _adapted(model: Any, lora: Lora) -> Any:
    freeze_what_text_does_not_reach(model)
    return model if lora is None else add_lora(model, seed=0, **lora)


def _work(model: Any) -> Work:
    try:
        return work_of(model)
    except (AttributeError, TypeError, NotImplementedError):
        return TOKENS


def _linear(model: Any) -> int:
    head = text_head(model)
    modules = (module for module in model.modules() if isinstance(module, torch.nn.Linear) and module is not head)
    return sum(module.weight.numel() for module in modules)


def _key_value_numbers(config: Any) -> int:
    heads = getattr(config, "num_attention_heads", None) or 0
    groups = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return 2 * int(config.num_hidden_layers) * int(groups) * int(size)
