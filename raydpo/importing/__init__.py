"""Doors in: the config of another project's preference training becomes a run.yaml of ours.

Comes in: a file of theirs. Goes out: YAML that says which option of theirs each line is from, and an account of all others.
Decision: an option of theirs has exactly one fate, and what would change numbers without a counterpart here stops the import
unless it is allowed by name, so that nothing is dropped in silence. The price is a table of option names for each project.
"""
