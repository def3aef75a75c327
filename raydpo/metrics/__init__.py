"""Metrics: declared once, summed exactly, written to sinks, watched for trouble."""

from raydpo.metrics.declared import METRICS, Metric, best_direction, names_for
from raydpo.metrics.sinks import Sinks, keep_lines
from raydpo.metrics.sums import Sums, means
from raydpo.metrics.watch import Patience, Watch

__all__ = [
    "METRICS",
    "Metric",
    "Patience",
    "Sinks",
    "Sums",
    "Watch",
    "best_direction",
    "keep_lines",
    "means",
    "names_for",
]
