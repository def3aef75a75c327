"""Sequence parallelism as DeepSpeed Ulysses has it: a packed stream is cut over a group of ranks, and no number changes.

Comes in: a packed batch, whole, the same on every rank of the group. Goes out: each rank's part of it, and from the log-probs
of the parts those of the batch, on every rank.
Decision: the stream is padded to a multiple of the ranks and cut into stretches of equal length; embedding, norms, MLPs and
head read a rank's own. Only attention sees other tokens, so there an all-to-all swaps stretches for heads: a rank then has the
whole stream for its share of the heads, segments and shared prompts as ever, and a second one swaps back. Price: four
all-to-alls a layer, and keys of fewer heads than ranks are repeated until each rank has one.

A loss is computed on every rank of the group from the same log-probs; its gradient is the sum of what the ranks then have.
Shapes: P ranks, T tokens of the padded stream, t = T / P, N answer tokens, n of them on this rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from raydpo.errors import ConfigError
from raydpo.models.before_loading import check_heads
from raydpo.models.logprobs import CHUNK_TOKENS, SequenceBatch, count_chunks
from raydpo.models.routing import row_counts

if TYPE_CHECKING:
    from raydpo.models.layout import Layout


@dataclass(frozen=True)
class SequencePart:
    """What one rank of a group does of a batch.

    batch: its stretch of ids and positions, the segments of the whole stream, and the answer tokens that it predicts.
    places: [n], which of the N answer tokens those are.
    num_targets: N.
    row_counts: [t], in how many rows each token of the stretch is; padding in none. None without the readers of segments.
    """

    batch: SequenceBatch
    places: Tensor
    num_targets: int
    row_counts: Tensor | None


class SequenceParallel:
    """The ranks that share a stream. group: theirs, None for all ranks there are. Every method but `part` is collective."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank, self.num_ranks = dist.get_rank(group), dist.get_world_size(group)

    def part(self, batch: SequenceBatch, chunk_tokens: int = CHUNK_TOKENS) -> SequencePart:
        """This rank's part. Raises ValueError for padded rows, in which tokens meet where no part sees them all."""
        if batch.segments is None or batch.position_ids is None:
            raise ValueError("sequence parallelism cuts a packed stream, and these rows are padded")
        whole = _filled(batch, self.num_ranks)
        assert whole.position_ids is not None
        length = whole.input_ids.shape[1] // self.num_ranks
        own = slice(self.rank * length, (self.rank + 1) * length)
        owners = batch.predictors // length
        places = (owners == self.rank).nonzero().squeeze(1)
        most = int(owners.bincount(minlength=self.num_ranks).max())
        part = replace(
            whole,
            input_ids=whole.input_ids[:, own],
            position_ids=whole.position_ids[:, own],
            predictors=batch.predictors[places] - own.start,
            targets=batch.targets[places],
            sequences=batch.sequences[places],
            num_chunks=max(batch.num_chunks, count_chunks(most, chunk_tokens)),
        )
        counts = None if whole.readers is None else row_counts(whole)[own]
        return SequencePart(part, places, len(batch.targets), counts)

    def complete(self, scores: Tensor, part: SequencePart) -> Tensor:
        """Scores of all answer tokens from those of each rank's own. scores: [..., n]; returns [..., N]."""
        whole = scores.new_zeros(*scores.shape[:-1], part.num_targets).index_copy(-1, part.places, scores)
        return self.summed(whole)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over ranks, on each of them; the gradient of a rank's share is that of the sum, which all ranks have."""
        found: Tensor = _Summed.apply(values, self.group)  # type: ignore[no-untyped-call]
        return found

    def stream_of_heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A stretch with all heads -> the stream with this rank's heads: [1, H, t, D] -> [1, H / P, T, D] each.

        key, value: [1, G, t, D]; where P does not divide G, their heads are repeated to the least common multiple first.
        Raises ConfigError when P does not divide H.
        """
        check_heads(query.shape[1], self.num_ranks)
        repeats = math.lcm(key.shape[1], self.num_ranks) // key.shape[1]
        if repeats > 1:
            key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        whole_q, whole_k, whole_v = (self._to_heads(tensor) for tensor in (query, key, value))
        return whole_q, whole_k, whole_v

    def stretch(self, output: Tensor) -> Tensor:
        """The way back: [1, H / P, T, D] -> [1, H, t, D]."""
        heads, length, size = output.shape[1:]
        parts = output[0].reshape(heads, self.num_ranks, length // self.num_ranks, size).transpose(0, 1)
        return self._swapped(parts).reshape(1, heads * self.num_ranks, length // self.num_ranks, size)

    def _to_heads(self, tensor: Tensor) -> Tensor:
        heads, length, size = tensor.shape[1:]
        parts = self._swapped(tensor[0].reshape(self.num_ranks, heads // self.num_ranks, length, size))
        return parts.transpose(0, 1).reshape(1, heads // self.num_ranks, self.num_ranks * length, size)

    def _swapped(self, parts: Tensor) -> Tensor:
        found: Tensor = _AllToAll.apply(parts, self.group)  # type: ignore[no-untyped-call]
        return found


def ranks_together(num_ranks: int, timeout: timedelta | None = None) -> SequenceParallel:
    """This rank and its neighbours, in groups of `num_ranks` that follow each other. Collective over all ranks.

    Raises ConfigError where that does not come out even.
    """
    total = dist.get_world_size()
    check_ranks(total, num_ranks)
    firsts = range(0, total, num_ranks)
    groups = [dist.new_group(list(range(first, first + num_ranks)), timeout=timeout) for first in firsts]
    return SequenceParallel(groups[dist.get_rank() // num_ranks])


def check_ranks(total: int, num_ranks: int) -> None:
    """Raises ConfigError where so many ranks in all are no whole number of groups."""
    if total % num_ranks:
        raise ConfigError(
            f"{total} ranks do not come out even in groups of {num_ranks} that share their sequences. Some would have been "
            f"left over, so nothing was computed. Use a multiple of {num_ranks} ranks."
        )


def check_shareable(model: Any, layout: Layout, why: str, num_ranks: int) -> None:
    """Raises ConfigError for a model whose sequences ranks cannot share. why: of padded rows."""
    if layout != "packed":
        raise ConfigError(
            f"sequence parallelism over {num_ranks} ranks needs a packed stream, and rows are padded here: {why}. Ranks would "
            "not have seen each other's tokens, so nothing was computed. Train this model without it."
        )
    heads = getattr(model.config.get_text_config(), "num_attention_heads", None)
    for each in [heads] if isinstance(heads, int) else heads or []:
        check_heads(each, num_ranks)


def _filled(batch: SequenceBatch, multiple: int) -> SequenceBatch:
    """The stream up to a multiple of so many tokens, with a segment of padding that no row reads behind its own."""
    length = batch.input_ids.shape[1]
    missing = -length % multiple
    if not missing:
        return batch
    assert batch.position_ids is not None
    assert batch.segments is not None
    return replace(
        batch,
        input_ids=torch.nn.functional.pad(batch.input_ids, (0, missing)),
        position_ids=torch.cat([batch.position_ids, torch.arange(missing).to(batch.position_ids)[None]], dim=1),
        segments=(*batch.segments, (length, length + missing, 0, 0)),
        readers=None if batch.readers is None else (*batch.readers, 0),
    )


class _AllToAll(torch.autograd.Function):
    """[P, ...]: slice p goes to rank p, and slice p comes from rank p. Its own inverse, and its own transpose."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = parts.contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _AllToAll.forward(ctx, grads[0], ctx.group), None


class _Summed(torch.autograd.Function):
    """The sum over ranks, of which every rank goes backward from the same loss."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
