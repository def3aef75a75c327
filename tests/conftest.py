"""What every test may rely on."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """Workers switch denormals off for their process; in a test process they come back, because hypothesis draws them."""
    yield
    torch.set_flush_denormal(False)
