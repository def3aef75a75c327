"""Reference log-probs: plan what is missing (driver), score it (workers). Knows no Ray."""
