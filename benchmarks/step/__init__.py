"""One DPO step and one reference pass, side by side with TRL's DPOTrainer. `python -m benchmarks.step --help`."""
