"""Judging: prompts and responses in, scores out; scores to pairs. One judge a file."""
