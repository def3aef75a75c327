"""Parts of a run that hold secrets and tell them when they fail."""

from __future__ import annotations

import os


class Asking:
    """A judge that is given a key in its settings, and fails with it on prompts that end in 9."""

    def __init__(self, api_key: str) -> None:
        self.api_key = api_key

    def __call__(self, prompt: str, responses: list[str]) -> list[float]:
        assert self.api_key == os.environ["OPENAI_API_KEY"], "the judge itself gets what the config says"
        if prompt.endswith("9"):
            raise ValueError(f"refused: {self.api_key}")
        return [float(len(response)) for response in responses]


def telling_schedule(step: int, num_steps: int) -> float:
    """Fails in a rank with all that its environment holds, and not when it is tried at the start, for 10 steps."""
    if step > 1 and num_steps < 10:
        raise RuntimeError(f"no share for step {step}; environment: {dict(os.environ)}")
    return 1.0
