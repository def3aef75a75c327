"""What ranks that share a stream are asked to do: a module's values and gradients, summed by an all-reduce of our own."""

from __future__ import annotations

from typing import Any, NamedTuple

import deepspeed
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.batches.micro_batches import lay_out
from raydpo.errors import ConfigError
from raydpo.metrics import Sums
from raydpo.models.attention import register
from raydpo.models.logprobs import AnswerLogProbs, SequenceBatch
from raydpo.models.lora import add_lora
from raydpo.models.memory import Living, compute_again
from raydpo.models.pretrained import switch_dropout_off
from raydpo.models.sequence_parallel import ranks_together
from raydpo.train import TrainSpec
from raydpo.train import trainer as trainer_module
from raydpo.train.rendezvous import init_method
from raydpo.train.step import all_reduce
from raydpo.train.trainer import build_trainer
from tests.models.test_attention import FAMILIES, norms_in_float64
from tests.train.gang import Place

MIXTURE = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
SHAPES = FAMILIES | {"mixtral": FAMILIES["llama"] | MIXTURE}

Options = tuple[tuple[str, Any], ...]


class StreamCase(NamedTuple):
    """What is computed. options: of `AnswerLogProbs.forward`. recomputed: layers that the backward pass computes again."""

    family: str
    rows: Any
    masks: Any = ()
    with_lora: bool = False
    recomputed: int = 0
    chunk_tokens: int = 1024
    options: Options = ()

    @property
    def batch(self) -> SequenceBatch:
        return lay_out(self.rows, "packed", self.masks)

    def scoring(self) -> AnswerLogProbs:
        """The same weights wherever it is made, in float64."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            self.family, **SHAPES[self.family], pad_token_id=0, bos_token_id=1, eos_token_id=2
        )
        config._experts_implementation = "eager"  # the grouped product has no float64
        model = AutoModelForCausalLM.from_config(config, attn_implementation=register()).double()
        model = switch_dropout_off(norms_in_float64(model))
        if self.with_lora:
            model = add_lora(model, rank=2, alpha=4, target_modules="all-linear", seed=0)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(parameter, std=0.1)
        if self.recomputed:
            compute_again(model, self.recomputed)
            model.train()
        return AnswerLogProbs(model, self.chunk_tokens)


class OfStream(NamedTuple):
    """What `forward` returned, one after the other tensor, and the gradient of each weight that trains."""

    values: list[np.ndarray]
    gradients: dict[str, np.ndarray]


def forward_and_backward(
    scoring: AnswerLogProbs, batch: SequenceBatch, options: tuple[tuple[str, Any], ...]
) -> list[np.ndarray]:
    """The loss knows of whole sequences and of pairs of them, as those of preferences do. Leaves the gradient behind."""
    found = scoring(batch, **dict(options))
    values = list(found) if isinstance(found, tuple) else [found]
    nats = values[0] if values[0].ndim == 1 else values[0][0]
    draw = torch.Generator().manual_seed(1)
    weights = torch.randn(len(nats), generator=draw, dtype=torch.float64)
    sums = nats.new_zeros(batch.num_sequences).index_add(0, batch.sequences, nats)
    loss = (weights * nats).sum() - nn.functional.logsigmoid(0.3 * (sums[:-1] - sums[1:])).sum()
    for balance in values[1:]:
        loss = loss + balance[0].square().sum()
    loss.backward()
    return [value.detach().numpy() for value in values]


def join() -> None:
    deepspeed.init_distributed("gloo", verbose=False, init_method=init_method())


def shared(place: Place, cases: list[StreamCase], num_together: int) -> OfStream:
    """Group g of `num_together` ranks reads case g; gradients are summed over all ranks."""
    join()
    case = cases[place.rank // num_together]
    scoring = case.scoring()
    scoring.ranks = ranks_together(num_together)
    values = forward_and_backward(scoring, case.batch, case.options)
    return OfStream(values, {name: _summed(p).numpy() for name, p in scoring.named_parameters() if p.requires_grad})


def _summed(parameter: nn.Parameter) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    torch.distributed.all_reduce(gradient)
    return gradient.detach()


def refused(place: Place, case: StreamCase, num_together: int) -> str:
    """The sentence of the ConfigError."""
    join()
    scoring = case.scoring()
    try:
        scoring.ranks = ranks_together(num_together)
        scoring(case.batch)
    except ConfigError as error:
        return str(error)
    return ""


def longest_stretch(place: Place, case: StreamCase) -> tuple[int, int, int]:
    """(tokens that the first MLP reads on this rank, keys that its attention sees, answer tokens that the head reads)."""
    join()
    scoring, seen = case.scoring(), {}
    model = scoring.model
    model.model.layers[0].mlp.register_forward_pre_hook(lambda _, given: seen.update(mlp=given[0].shape[1]))
    scoring.head.register_forward_pre_hook(lambda _, given: seen.update(head=given[0].shape[0]))
    scoring.ranks = ranks = ranks_together(place.num_ranks)
    honest = ranks.stretch
    ranks.stretch = lambda output: (seen.update(keys=output.shape[2]), honest(output))[1]  # type: ignore[method-assign]
    with torch.no_grad():
        scoring(case.batch)
    return seen["mlp"], seen["keys"], seen["head"]


def peak_bytes(case: StreamCase, num_together: int = 1) -> tuple[int, np.ndarray]:
    """The most storage that lives in a forward and backward in float32, beside the weights, and the log-probs."""
    scoring, batch = case.scoring().float(), case.batch
    scoring.ranks = ranks_together(num_together) if num_together > 1 else None
    with Living() as living:
        nats = scoring(batch)
        nats.sum().backward()
    return max(living.trace), nats.detach().numpy()


def shared_peak_bytes(place: Place, case: StreamCase) -> tuple[int, np.ndarray]:
    join()
    return peak_bytes(case, place.num_ranks)


class Counted(NamedTuple):
    """What a rank read of one step, and what all ranks counted together.

    examples: of each micro-batch, in order. tokens: of the step, as the meter counts them. train, held_out: "sum of"
    and "count of" each metric.
    """

    examples: list[list[int]]
    tokens: int
    train: dict[str, float]
    held_out: dict[str, float]


def counted(place: Place, spec: TrainSpec, step: int) -> Counted:
    """Of step `step` (from 0) and an evaluation after it: what their metrics are divided from."""
    trainer, vectors = build_trainer(place, spec), []

    def noted(sums: Sums, names: list[str], device: Any) -> list[float]:
        vector = all_reduce(sums, names, device)
        keys = [f"{what} of {name}" for name in names for what in ("sum", "count")]
        vectors.append(dict(zip(keys, vector, strict=True)))
        return vector

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "all_reduce", noted)
        trainer.update(step)
        list(trainer.evaluate(step + 1))
    examples = trainer.order.examples(step)
    read = [[int(examples[place]) for place in micro] for micro, _ in trainer.train.micro_batches(examples)]
    train, held_out = vectors
    return Counted(read, trainer.num_tokens(step), train, held_out)
