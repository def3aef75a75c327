"""Rules that end the rounds early: pure functions of a round's metrics and the config."""

from __future__ import annotations

from collections.abc import Mapping

from raydpo.config.round_sections import RoundsSection


def stop_reasons(metrics: Mapping[str, float | None], rounds: RoundsSection) -> list[str]:
    """A sentence for every rule that a round's metrics break; a rule whose metric was not measured breaks nothing."""
    unknown = [name for name, value in metrics.items() if value is None]  # JSON has no NaN
    if unknown:
        return [f"{', '.join(unknown)} is not a finite number"]
    known = {name: value for name, value in metrics.items() if value is not None}
    return _broken(known, rounds)


def _broken(metrics: Mapping[str, float], rounds: RoundsSection) -> list[str]:
    at_least = {
        "min_mean_score": ("eval/mean_score", rounds.min_mean_score),
        "min_win_rate": ("eval/win_rate", rounds.min_win_rate),
        "min_distinct_2": ("samples/distinct_2", rounds.min_distinct_2),
    }
    at_most = {
        "max_kl_nats": ("eval/kl_nats", rounds.max_kl_nats),
        "max_duplicate_share": ("samples/duplicate_share", rounds.max_duplicate_share),
    }
    reasons = [
        f"{name} is {metrics[name]:.4g}, below rounds.{key}: {bound:g}"
        for key, (name, bound) in at_least.items()
        if bound is not None and name in metrics and metrics[name] < bound
    ]
    reasons += [
        f"{name} is {metrics[name]:.4g}, above rounds.{key}: {bound:g}"
        for key, (name, bound) in at_most.items()
        if bound is not None and name in metrics and metrics[name] > bound
    ]
    ratio, drift = metrics.get("eval/length_ratio"), rounds.max_length_drift
    if drift is not None and ratio is not None and not 1 / drift <= ratio <= drift:
        reasons.append(f"eval/length_ratio is {ratio:.4g}, beyond rounds.max_length_drift: {drift:g}")
    return reasons
