"""The run directory: where everything lies, what counts, and what an attempt goes on from."""
