"""`raydpo report`: what a run did, or how several compare, as one HTML file.

Comes in: the parsers of the command line. Goes out: one more verb. Decision: nothing heavier than argparse until it runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from raydpo.json_result import print_json

_TEXT = "one HTML file that says what a run did; of several runs, how they compare"
_EXAMPLE = "example: raydpo report runs/first; raydpo report runs/a runs/b -o comparison.html"


def add(verbs: Any, machine: argparse.ArgumentParser) -> None:
    """Add the verb."""
    verb = verbs.add_parser("report", parents=[machine], help=_TEXT, description=_TEXT, epilog=_EXAMPLE)
    verb.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run directories")
    verb.add_argument(
        "-o", "--out", metavar="FILE", type=Path, help="default: report.html in the run, or comparison.html"
    )
    verb.set_defaults(act=_report)


def _report(args: argparse.Namespace) -> int:
    from raydpo.run_report.write import write

    path = write(args.runs, args.out)
    if args.json:
        print_json({"report": str(path), "runs": list(map(str, args.runs))})
    else:
        print(path)
    return 0
