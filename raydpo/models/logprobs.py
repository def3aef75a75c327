"""The one implementation of answer log-probs: reference workers, trainers, evaluation and tests all call this.

Comes in: S right-padded sequences of T tokens and the N answer tokens to score, of a masked answer those that the loss
covers. Goes out: N log-probs in nats, float32.
Decision: the head runs on answer positions only, in chunks of tokens that the backward pass recomputes, so the
peak memory of the logits does not depend on the batch; the price is 2hV more FLOPs an answer token. The logits of a
head in 16 bits are summed and kept in float32 (`wide_logits`).

Shapes: S sequences, T tokens of the longest, N answer tokens in all, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raydpo.errors import ConfigError
from raydpo.models.attention import Segment, Stream
from raydpo.models.routing import row_counts, tally
from raydpo.models.text_part import device_of, text_body, text_head
from raydpo.models.together import Together, one_by_one
from raydpo.models.wide_logits import widen

if TYPE_CHECKING:
    from raydpo.models.sequence_parallel import SequenceParallel

Extra = Literal["nothing", "collisions", "likeliest"]
"""What is computed in addition to log-probs, see `AnswerLogProbs`."""

CHUNK_TOKENS = 1024
"""Answer tokens whose logits exist at one time: 1024 x 32,000 ids in float32 are 131 MB."""


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences to score, packed into one stream or padded. Every tensor is int64.

    input_ids: packed [1, T]; padded [S, T], right-padded.
    attention_mask: padded [S, T]; packed None.
    predictors: [N], place in the flattened ids of the position whose hidden state predicts the answer token; answers
        that share it name it twice.
    targets: [N], the id of the answer token.
    sequences: [N], the sequence s that it belongs to, ascending.
    num_sequences: S.
    position_ids: packed [1, T]; padded None.
    segments: packed as in `raydpo.models.attention`; padded None.
    readers: packed, in how many rows the tokens of each segment stand; padded None.
    num_chunks: calls of the head at least. Under ZeRO-3 a call may gather the head's weights from all ranks, so ranks
        must make the same number, however many answer tokens each has.
    num_idle_chunks: further calls of the head, without a token: for the same purpose, where chunks are to be cut as on a
        rank alone.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    predictors: Tensor
    targets: Tensor
    sequences: Tensor
    num_sequences: int
    position_ids: Tensor | None = None
    segments: tuple[Segment, ...] | None = None
    num_chunks: int = 1
    readers: tuple[int, ...] | None = None
    num_idle_chunks: int = 0

    def to(self, device: torch.device | str) -> SequenceBatch:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in values.items()}
        return SequenceBatch(**moved)


class AnswerLogProbs(nn.Module):
    """A causal LM as a function from a SequenceBatch to log-probs of the answer tokens: [N] float32 nats.

    extra, without gradient, below the log-probs. collisions: [2, N], log sum_v p(v)^2 at each answer token: the log of how
    probable a token is on average that is drawn from the model itself. likeliest: [3, N], the log-prob of the likeliest
    token there, and its id. top_k: of a mixture of experts, also returns what its routers did, [2, E] of `routing.tally`.
    """

    def __init__(self, model: Any, chunk_tokens: int = CHUNK_TOKENS) -> None:
        super().__init__()
        self.model = model
        self.chunk_tokens = chunk_tokens
        self.ranks: SequenceParallel | None = None
        """Those that share every batch that `forward` is given, each the same one; None: this process reads it alone."""
        self._adjust = logits_adjustment(model.config)
        widen(self.head)

    def forward(self, batch: SequenceBatch, extra: Extra = "nothing", top_k: int = 0) -> Tensor | tuple[Tensor, Tensor]:
        more = {"output_router_logits": True} if top_k else {}
        if self.ranks is not None:
            return self._forward_of_part(self.ranks, batch, extra, top_k, more)
        found = self._read(batch, None, **more)
        nats = self.read_off(found.last_hidden_state, batch, extra)
        return (nats, tally(found.router_logits, row_counts(batch), top_k)) if top_k else nats

    def _forward_of_part(
        self, ranks: SequenceParallel, batch: SequenceBatch, extra: Extra, top_k: int, more: dict[str, Any]
    ) -> Tensor | tuple[Tensor, Tensor]:
        part = ranks.part(batch, self.chunk_tokens)
        found = self._read(part.batch, ranks, **more)
        nats = ranks.complete(self.read_off(found.last_hidden_state, part.batch, extra), part)
        if not top_k:
            return nats
        assert part.row_counts is not None
        return nats, ranks.summed(tally(found.router_logits, part.row_counts, top_k))

    def hidden(self, batch: SequenceBatch) -> Tensor:
        """What the head reads, of every position: [1 or S, T, H]."""
        found: Tensor = self._read(batch).last_hidden_state
        return found

    def read_off(self, hidden: Tensor, batch: SequenceBatch, extra: Extra = "nothing") -> Tensor:
        """What `forward` returns, from what `hidden` returned."""
        hidden_NH = hidden.flatten(0, 1).index_select(0, batch.predictors)
        num_chunks = max(batch.num_chunks, count_chunks(len(batch.targets), self.chunk_tokens))
        idle = [self.score(hidden_NH[:0], batch.targets[:0], 1, extra) for _ in range(batch.num_idle_chunks)]
        nats = self.score(hidden_NH, batch.targets, num_chunks, extra)
        return torch.cat([*idle, nats], dim=-1) if idle else nats

    def _read(self, batch: SequenceBatch, ranks: SequenceParallel | None = None, **more: Any) -> Any:
        return text_body(self.plain)(input_ids=batch.input_ids, use_cache=False, **_layout(batch, ranks), **more)

    def score(
        self, hidden_NH: Tensor, targets_N: Tensor, num_chunks: int = 1, extra: Extra = "nothing", head: Any = None
    ) -> Tensor:
        """Log-probs of `targets_N` from hidden states, in `num_chunks` calls of the head; as `forward` returns them.

        head: another one than the model's own.
        """
        head = self.head if head is None else head
        chunks = zip(hidden_NH.tensor_split(num_chunks), targets_N.tensor_split(num_chunks), strict=True)
        recompute = num_chunks > 1 and torch.is_grad_enabled()
        score = _CHUNK_SCORES[extra]
        nats = [
            checkpoint(score, head, self._adjust, h, t, use_reentrant=False)
            if recompute
            else score(head, self._adjust, h, t)
            for h, t in chunks
        ]
        return torch.cat(nats, dim=-1)

    @property
    def head(self) -> Any:
        """The linear layer from hidden states to logits."""
        return text_head(self.plain)

    @property
    def plain(self) -> Any:
        """The model without the adapter on it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model


def _layout(batch: SequenceBatch, ranks: SequenceParallel | None = None) -> dict[str, Any]:
    if batch.segments is not None:
        return {"attention_mask": None, "position_ids": batch.position_ids, "stream": Stream(batch.segments, ranks)}
    mask = batch.attention_mask
    return {"attention_mask": None if mask is None or bool(mask.all()) else mask}


def count_chunks(num_tokens: int, chunk_tokens: int = CHUNK_TOKENS) -> int:
    """Calls of the head for `num_tokens` answer tokens; at least one."""
    return max(1, -(-num_tokens // chunk_tokens))


Adjust = Callable[[Tensor], Tensor]
ChunkScore = Callable[[nn.Module, Adjust, Tensor, Tensor], Tensor]


def _chunk_logits(head: nn.Module, adjust: Adjust, hidden_NH: Tensor) -> Tensor:
    # float64 stays float64 (the tests' oracle); everything narrower is reduced in float32.
    logits_NV = head(hidden_NH)
    return adjust(logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float())


def _chunk_nats(head: nn.Module, adjust: Adjust, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    return _nats(_chunk_logits(head, adjust, hidden_NH), targets_N)


def _chunk_nats_and_collisions(head: nn.Module, adjust: Adjust, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = _chunk_logits(head, adjust, hidden_NH)
    fixed_NV = logits_NV.detach()
    return torch.stack([_nats(logits_NV, targets_N), (2 * fixed_NV).logsumexp(1) - 2 * fixed_NV.logsumexp(1)])


def _chunk_nats_and_likeliest(head: nn.Module, adjust: Adjust, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = _chunk_logits(head, adjust, hidden_NH)
    top_N, ids_N = logits_NV.detach().max(1)
    return torch.stack([_nats(logits_NV, targets_N), _nats(logits_NV.detach(), ids_N), ids_N.to(top_N.dtype)])


_CHUNK_SCORES: dict[Extra, ChunkScore] = {
    "nothing": _chunk_nats,
    "collisions": _chunk_nats_and_collisions,
    "likeliest": _chunk_nats_and_likeliest,
}


def _nats(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    return logits_NV.gather(1, targets_N[:, None]).squeeze(1) - logits_NV.logsumexp(1)


def logits_adjustment(config: Any) -> Callable[[Tensor], Tensor]:
    """What the architecture does to its logits after the head: soft-capping or scaling, by its config's fields."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    cap = getattr(config, "final_logit_softcapping", None)
    scale = (getattr(config, "logit_scale", None) or 1.0) * (getattr(config, "lm_head_multiplier", None) or 1.0)
    divisor = getattr(config, "logits_scaling", None) or 1.0

    def adjust(logits: Tensor) -> Tensor:
        logits = logits * scale / divisor if scale != divisor else logits
        return torch.tanh(logits / cap) * cap if cap else logits

    return adjust


@torch.no_grad()
def check_head(scoring: AnswerLogProbs, together: Together = one_by_one) -> None:
    """Compare this path with the model's own forward on eight tokens; a difference is a ConfigError, not a number.

    Catches architectures that change their logits after the head in a way that `logits_adjustment` does not know. together:
    makes forwards that do not wait for each other.
    """
    model = scoring.model
    device = device_of(model)
    ids = torch.arange(8, device=device)[None] % model.config.get_text_config().vocab_size
    mask = torch.ones_like(ids)
    steps = torch.arange(7, device=device)
    batch = SequenceBatch(ids, mask, steps, ids[0, 1:], torch.zeros_like(steps), 1)
    own = partial(model, input_ids=ids, attention_mask=mask, use_cache=False)
    output, ours = together([own, partial(scoring, batch)])
    logits = output.logits[0, :-1].float()
    expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
    if not bool(expected.isfinite().all()):
        raise ConfigError(
            f"model.path: {type(model).__name__} gives log-probs that are not finite on a probe of eight tokens: its weights "
            f"hold NaN or infinity, or overflow in {model.dtype}. Nothing was computed. Use an earlier checkpoint, or "
            "model.dtype: float32."
        )
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
    difference = float((ours.float() - expected).abs().max())
    if not difference <= tolerance:
        raise ConfigError(
            f"model.path: {type(model).__name__} changes its logits after the head in a way raydpo does not know: its own "
            f"forward differs by {difference:.3g} nats on a probe (tolerance {tolerance:g}). Scores would have been wrong, "
            "so nothing was computed. Supported are architectures whose logits are head(hidden), optionally scaled or "
            "soft-capped by their config."
        )
