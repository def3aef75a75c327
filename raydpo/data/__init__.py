"""Preference data: files and hub data sets in, checked token shards and a report out; and prompts for rounds."""

from raydpo.data.prepare import prepare
from raydpo.data.prompts import PromptReport, chosen_ids, read_prompts
from raydpo.data.report import DataReport
from raydpo.data.template import open_tokenizer
from raydpo.data.tokenizer import TextTokenizer, load_tokenizer

__all__ = [
    "DataReport",
    "PromptReport",
    "TextTokenizer",
    "chosen_ids",
    "load_tokenizer",
    "open_tokenizer",
    "prepare",
    "read_prompts",
]
