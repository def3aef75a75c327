"""Reference log-probs: plan what is missing (driver), score it (workers). Knows no Ray."""

from raydpo.reference.plan import ShardWork, plan_shards, wanted_rows

__all__ = ["ShardWork", "plan_shards", "wanted_rows"]
