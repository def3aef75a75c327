"""On-policy rounds: sample, judge, train, repeat."""

from raydpo.pipelines.rounds.loop import Round, iterate, run_rounds

__all__ = ["Round", "iterate", "run_rounds"]
