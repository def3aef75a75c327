"""What a run did, as one HTML file that needs nothing else: `raydpo report`, and at the end of every run."""
