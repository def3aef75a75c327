"""Judging: prompts and responses in, scores out; scores to pairs. One judge a file."""

from raydpo.judge.build import build_judge
from raydpo.judge.judge_inputs import local_model
from raydpo.judge.judge_problems import problems_of
from raydpo.judge.measures import SampleTally, distinct_bigrams, win_rate
from raydpo.judge.pairs import PairRule, PairsOfPrompt, make_pairs, record_of, spin_pairs
from raydpo.judge.verdict import Judge, NoVerdict, Row, Verdict, judge_row, judge_rows

__all__ = [
    "Judge",
    "NoVerdict",
    "PairRule",
    "PairsOfPrompt",
    "Row",
    "SampleTally",
    "Verdict",
    "build_judge",
    "distinct_bigrams",
    "judge_row",
    "judge_rows",
    "local_model",
    "make_pairs",
    "problems_of",
    "record_of",
    "spin_pairs",
    "win_rate",
]
