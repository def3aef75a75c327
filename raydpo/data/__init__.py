"""Preference data: files and hub data sets in, checked token shards and a report out."""

from raydpo.data.prepare import prepare
from raydpo.data.report import DataReport
from raydpo.data.tokenizer import load_tokenizer

__all__ = ["DataReport", "load_tokenizer", "prepare"]
