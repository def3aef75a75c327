"""Held-out pairs as the page shows them: those that moved most and least, by token; and shares by length and source.

Comes in: pairs with their log-probs. Goes out: plain values for the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raydpo.metrics.intervals import wilson
from raydpo.run_report.charts import Bar, Series
from raydpo.run_report.run_facts import PairNats
from raydpo.run_report.token_texts import MOST_TOKENS, TokenTexts

SHOWN = 4
"""Pairs of each kind."""
_PROMPT_CHARS = 700
_MOST_SOURCES = 12
_STRONG_NATS = 2.0
"""Log-ratio of a token that gets the full colour."""
_TIE_NATS = 1e-3


@dataclass(frozen=True)
class TokenView:
    """text: of the token. nats: its log-ratio (log-prob without a reference); None: not in the loss. strength: -9 to 9."""

    text: str
    nats: float | None
    strength: int


@dataclass(frozen=True)
class PairView:
    """A pair to look at. prompt: its end. chosen, rejected: tokens; cut where they are long."""

    number: int
    margin: float
    log_ratios: tuple[float, float]
    prompt: str
    chosen: Sequence[TokenView]
    rejected: Sequence[TokenView]


def most_and_least(pairs: Sequence[PairNats], texts: TokenTexts) -> tuple[list[PairView], list[PairView]]:
    """The pairs with the largest and with the smallest margins."""
    order = sorted(pairs, key=lambda pair: pair.margin, reverse=True)
    return [_view(pair, texts) for pair in order[:SHOWN]], [_view(pair, texts) for pair in order[-SHOWN:][::-1]]


def _view(pair: PairNats, texts: TokenTexts) -> PairView:
    prompt = texts.text(pair.prompt)
    prompt = f"... {prompt[-_PROMPT_CHARS:]}" if len(prompt) > _PROMPT_CHARS else prompt
    sides = [_tokens(pair, side, texts) for side in (0, 1)]
    return PairView(pair.example, pair.margin, pair.log_ratios, prompt, *sides)


def _tokens(pair: PairNats, side: int, texts: TokenTexts) -> list[TokenView]:
    ids, nats = pair.answers[side], pair.policy[side]
    values = nats if pair.reference is None else nats - pair.reference[side]
    if len(values) != len(ids):  # an answer with a mask: places of its tokens in the loss are not kept
        return [TokenView(texts.of(token), None, 0) for token in ids[:MOST_TOKENS]]
    return [
        TokenView(texts.of(token), float(value), round(9 * max(-1.0, min(1.0, float(value) / _STRONG_NATS))))
        for token, value in zip(ids[:MOST_TOKENS], values[:MOST_TOKENS], strict=True)
    ]


def _share(name: str, pairs: Sequence[PairNats]) -> Bar:
    wins = sum(1.0 if pair.margin > _TIE_NATS else 0.5 if pair.margin >= -_TIE_NATS else 0.0 for pair in pairs)
    rate = wins / len(pairs)
    low, high = wilson(rate, len(pairs))
    return Bar(f"{name} ({len(pairs):,})", rate, low, high, f"of {len(pairs):,} pairs")


def by_length(pairs: Sequence[PairNats]) -> list[Bar]:
    """Accuracy by who is longer, in five parts of equal size where lengths differ enough."""
    gaps = np.array([pair.length_difference for pair in pairs])
    edges = np.unique(np.quantile(gaps, [0, 0.2, 0.4, 0.6, 0.8, 1])) if len(gaps) else np.zeros(0)
    if len(edges) < 3:
        return []
    found = []
    for low, high, last in zip(edges[:-1], edges[1:], [False] * (len(edges) - 2) + [True], strict=True):
        inside = (gaps >= low) & ((gaps <= high) if last else (gaps < high))
        if inside.any():
            chosen = [pair for pair, is_in in zip(pairs, inside, strict=True) if is_in]
            found.append(_share(f"{low:+.0f} to {high:+.0f} tokens", chosen))
    return found


def by_source(pairs: Sequence[PairNats]) -> list[Bar]:
    """Accuracy by file or entry, where there are several."""
    groups: dict[str, list[PairNats]] = {}
    for pair in pairs:
        groups.setdefault(pair.source.rpartition("/")[2], []).append(pair)
    if len(groups) < 2:
        return []
    return [
        _share(name, group) for name, group in sorted(groups.items(), key=lambda each: -len(each[1]))[:_MOST_SOURCES]
    ]


def by_confidence(pairs: Sequence[PairNats]) -> list[Bar]:
    """Accuracy by how sure the reference was already: fifths of the difference of its log-probs of the two answers."""
    known = [pair for pair in pairs if pair.reference is not None]
    if len(known) < 25:
        return []
    before = np.array([float(pair.reference[0].sum() - pair.reference[1].sum()) for pair in known if pair.reference])
    edges = np.quantile(before, [0, 0.2, 0.4, 0.6, 0.8, 1])
    places = np.clip(np.searchsorted(edges, before, side="right") - 1, 0, 4)
    return [
        _share(
            f"{edges[n]:+.1f} to {edges[n + 1]:+.1f} nats",
            [pair for pair, at in zip(known, places, strict=True) if at == n],
        )
        for n in range(5)
        if (places == n).any()
    ]


def clouds(pairs: Sequence[PairNats]) -> tuple[list[Series], list[Series]]:
    """(chosen against rejected log-ratio, margin against difference of lengths)."""
    ratios = [pair.log_ratios for pair in pairs]
    both = Series("pair", [chosen for chosen, _ in ratios], [rejected for _, rejected in ratios], "a")
    gaps = Series("pair", [pair.length_difference for pair in pairs], [pair.margin for pair in pairs], "b")
    return [both], [gaps]
