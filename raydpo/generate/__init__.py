"""Generation: prompts in, answers out, one engine a file."""
