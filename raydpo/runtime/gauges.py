"""Numbers of a run that a cluster's monitoring may scrape: Prometheus gauges by Ray's own metrics, one table of names.

Comes in: a name of the table and a value. Goes out: a gauge `ray_<name>` at the metrics port of the driver's node, with labels
`run` and `role`. Decision: gauges alone, set by the driver, which knows everything; nothing is sent by ranks or workers, and
without Ray nothing happens. metrics.jsonl stays the record: a scrape is what somebody watches.
"""

from __future__ import annotations

from raydpo.runtime import sessions

GAUGES = {
    "raydpo_step": "Optimizer steps done",
    "raydpo_loss": "Loss of the last step",
    "raydpo_reward_margin": "Reward margin of the last step, beta x nats",
    "raydpo_tokens_per_second": "Real tokens a second, all ranks",
    "raydpo_ranks": "Trainer ranks",
    "raydpo_cache_hit_rows": "Rows of the run that the reference cache had",
    "raydpo_cache_missed_rows": "Rows of the run that it lacked at the start",
    "raydpo_scored_rows": "Rows scored so far in this attempt",
    "raydpo_queue_items": "Items of a role that no worker has taken yet",
    "raydpo_items_in_work": "Items that the workers of a role have",
    "raydpo_workers": "Workers of a role that have their place",
    "raydpo_busy_share": "Share of a role's workers with an item in work",
    "raydpo_pair_staleness": "Versions by which the policy that sampled the last round's pairs was older, mean over the pairs",
    "raydpo_pair_staleness_most": "The same of the oldest pair",
}


def gauge(name: str, value: float, role: str = "") -> None:
    """Show `value`. KeyError: not in the table. Without a session on Ray nothing happens."""
    sessions.show(name, GAUGES[name], float(value), role)
