"""`raydpo inspect`: a look at preference data before any training.

Comes in: the parsers of the command line. Goes out: one more verb. Decision: nothing heavier than argparse until it runs.
"""

from __future__ import annotations

import argparse
from typing import Any

from raydpo.json_result import print_json

_TEXT = "preference data before any training: lengths, bias, doubles, noise, and which key acts on each"
_EXAMPLE = "example: raydpo inspect pairs.jsonl --eval held_out.jsonl --model path-or-hub-id"


def add(verbs: Any, machine: argparse.ArgumentParser) -> None:
    """Add the verb."""
    verb = verbs.add_parser("inspect", parents=[machine], help=_TEXT, description=_TEXT, epilog=_EXAMPLE)
    verb.add_argument("data", metavar="DATA", nargs="+", help="files, folders, globs or hub data sets to train on")
    verb.add_argument("--eval", metavar="DATA", nargs="+", default=[], help="the same for held-out data")
    verb.add_argument("--model", help="folder or hub id whose tokenizer counts (default: bytes are counted)")
    verb.set_defaults(act=_inspect)


def _inspect(args: argparse.Namespace) -> int:
    from raydpo.inspection.look import inspect
    from raydpo.inspection.screen_lines import screen_lines

    found = inspect(args.data, args.eval, args.model)
    if args.json:
        print_json(found.to_json())
    else:
        print("\n".join(screen_lines(found)).lstrip("\n"))
    return 0
