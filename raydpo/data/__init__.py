"""Preference data: files and hub data sets in, checked token shards and a report out; and prompts for rounds."""

from raydpo.data.bad_rows import BadRow
from raydpo.data.format import Format
from raydpo.data.messages import Example
from raydpo.data.prepare import prepare
from raydpo.data.prompts import PromptReport, chosen_ids, read_prompts
from raydpo.data.report import DataReport

__all__ = ["BadRow", "DataReport", "Example", "Format", "PromptReport", "chosen_ids", "prepare", "read_prompts"]
