"""A look at preference data before any training: what is read, what is left out, and what DPO will make of it."""
