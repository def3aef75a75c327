"""The small tokenizers and the runner of the tests of data."""

from tests.data.conftest import plain_tokenizer, run

__all__ = ["plain_tokenizer", "run"]
