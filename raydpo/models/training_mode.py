"""Is a model the same function in training mode as in evaluation mode? Asked once, of a few tokens, before anything is trained.

Comes in: a causal LM whose dropout is off. Goes out: nothing, or a ConfigError that names the module. Decision: besides the
values, every random number that a forward draws counts: a router that samples among near ties does so at some tokens only,
and a short probe need not meet one. A single number, or draws that are all equal, change nothing (layerdrop of 0). The price
is four forwards of eight tokens at every start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raydpo.errors import ConfigError

TOLERANCE_NATS = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Training mode against evaluation mode, by dtype; 0.1 for the others."""
NUM_TOKENS = 8


def check_training_mode(model: Any) -> None:
    """Raise ConfigError where a forward in training mode is random, or another one than in evaluation mode."""
    was_training = model.training
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _runs_on_cpu(model):
        model.eval()
        plain, again = _forward(model), _forward(model)
        model.train()
        with _Draws(model) as draws:
            first = _forward(model)
        second = _forward(model)
    model.train(was_training)
    if draws.found:
        raise _refused(model, f"draws random numbers in training mode: {'; '.join(draws.found[:3])}")
    if not torch.equal(first, second) and torch.equal(plain, again):
        apart = float((first - second).abs().max())
        raise _refused(model, f"gives other log-probs at each forward in training mode ({apart:.2g} nats apart)")
    if (apart := float((first - plain).abs().max())) > TOLERANCE_NATS.get(model.dtype, 0.1):
        raise _refused(
            model, f"gives other log-probs in training mode than in evaluation mode ({apart:.2g} nats apart)"
        )


def _forward(model: Any) -> Tensor:
    device = next(model.parameters()).device
    ids = torch.arange(NUM_TOKENS, device=device)[None] % model.config.get_text_config().vocab_size
    found: Tensor = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    return found


@contextmanager
def _runs_on_cpu(model: Any) -> Iterator[None]:
    """flash-attn does not run where the model still is; what is random lies elsewhere."""
    before = model.config._attn_implementation
    if before == "flash_attention_2":
        model.set_attn_implementation("eager")
    try:
        yield
    finally:
        if before == "flash_attention_2":
            model.set_attn_implementation(before)


class _Draws(TorchFunctionMode):
    """Who draws random numbers that can differ, and by what: "module (class) calls function"."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[str] = []
        self._hooks: list[Any] = []
        self._model = model

    def __enter__(self) -> _Draws:
        for name, module in self._model.named_modules():
            said = f"{name or 'the model'} ({type(module).__name__}{_noise_of(module)})"
            self._hooks.append(module.register_forward_pre_hook(lambda *_, said=said: self._open.append(said)))
            self._hooks.append(module.register_forward_hook(lambda *_: self._close()))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def _close(self) -> None:
        self._open.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = torch.random.get_rng_state()
        result = func(*args, **(kwargs or {}))
        if not torch.equal(before, torch.random.get_rng_state()) and _differs(result):
            self.found.append(f"{self._open[-1]} by {getattr(func, '__name__', func)}")
        return result


def _differs(drawn: Any) -> bool:
    return not isinstance(drawn, Tensor) or (drawn.numel() > 1 and bool((drawn != drawn.flatten()[0]).any()))


def _noise_of(module: nn.Module) -> str:
    """Settings of a module that name a noise, as text."""
    marks = ("jitter", "noise")
    found = [
        f", {name}: {value}"
        for name, value in vars(module).items()
        if any(mark in name for mark in marks) and isinstance(value, float | int)
    ]
    return "".join(found)


def _refused(model: Any, what: str) -> ConfigError:
    return ConfigError(
        f"model.path: {type(model).__name__} {what}. Policy and reference would be two functions from the first step on, and "
        "margins would hold the difference; nothing was trained. Where config.json sets such a noise for training alone "
        "(router_jitter_noise of Mixtral), set it to 0 there; else start from a model whose forward is one function."
    )
