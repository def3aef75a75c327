"""Arrow schemas between stages, and the key of a row."""

from raydpo.schema.rows import EXAMPLES, KEY_LENGTH, LOGPROB_VERSION, LOGPROBS, MASKED_EXAMPLES, row_key

__all__ = ["EXAMPLES", "KEY_LENGTH", "LOGPROBS", "LOGPROB_VERSION", "MASKED_EXAMPLES", "row_key"]
