"""`raydpo import`: the config of another project's preference training as a run.yaml.

Comes in: the parsers of the command line. Goes out: one more verb. Decision: nothing heavier than argparse until it acts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

_TEXT = "run.yaml from a config or script of TRL, LLaMA-Factory, Axolotl, ms-swift, OpenRLHF, NeMo-RL or open-instruct"
_PROJECTS = ("trl", "llama-factory", "axolotl", "ms-swift", "openrlhf", "nemo-rl", "open-instruct")
_MORE = (
    "An option of theirs that changes numbers and has no counterpart stops the import, all of them at once, unless "
    "it is allowed by "
    "name. docs/import.md says what maps to what. Example: raydpo import train_dpo.sh --processes 8 -o run.yaml"
)


def add(verbs: Any, parents: list[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    verb = verbs.add_parser("import", parents=parents, help=_TEXT, description=_TEXT, epilog=_MORE)
    verb.add_argument(
        "file", metavar="FILE", help="YAML, JSON, TOML, a shell script, or a .py with commands in its docstring"
    )
    verb.add_argument(
        "overrides",
        metavar="section.key=value",
        nargs="*",
        help="values of ours, which win and settle what they decide",
    )
    verb.add_argument("--from", dest="project", choices=_PROJECTS, help="whose file it is, where it does not say so")
    verb.add_argument(
        "--trainer", choices=("dpo", "kto", "orpo", "cpo", "bco"), help="of TRL, where the file does not say so"
    )
    verb.add_argument(
        "--processes", type=_count, metavar="N", help="processes that train; the batch is a product with it"
    )
    verb.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="OPTION",
        help="leave this option of theirs out (may be repeated)",
    )
    verb.add_argument(
        "--var", action="append", default=[], type=_variable, metavar="NAME=VALUE", help="a variable of a shell script"
    )
    verb.add_argument("--command", type=_count, metavar="N", help="which of several trainings in the file, from 1")
    verb.add_argument("-o", "--output", metavar="run.yaml", help="where to write it (default: stdout)")
    verb.set_defaults(act=_act)


def _act(args: argparse.Namespace) -> int:
    from raydpo.importing import account
    from raydpo.importing.conversion import ImportWishes, convert
    from raydpo.json_result import print_json

    wishes = ImportWishes(
        project=args.project,
        trainer=args.trainer,
        processes=args.processes,
        allowed=args.allow,
        variables=dict(args.var),
        command=args.command,
        overrides=args.overrides,
    )
    found = convert(args.file, wishes)
    if args.output is not None:
        Path(args.output).write_text(found.text, encoding="utf-8")
    elif not args.json:
        print(found.text, end="")
    print("\n".join(account.lines(found)), file=sys.stderr)
    if args.json:
        print_json(account.as_json(found))
    return 0


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: a whole number from 1")
    return int(text)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: NAME=VALUE")
    return name, value
