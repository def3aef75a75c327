"""`raydpo soup`: the mean of the weights of several models, as a model.

Comes in: the parsers of the command line. Goes out: one more verb. Decision: a run directory stands for the model that it
published, merged if it trained an adapter.
"""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError
from raydpo.json_result import print_json

_TEXT = "the mean of several models' weights: model folders, or run directories"
_EXAMPLE = "example: raydpo soup runs/seed-0 runs/seed-1 runs/seed-2 -o runs/soup"


def add(verbs: Any, machine: argparse.ArgumentParser) -> None:
    """Add the verb."""
    verb = verbs.add_parser("soup", parents=[machine], help=_TEXT, description=_TEXT, epilog=_EXAMPLE)
    verb.add_argument("models", metavar="MODEL", nargs="+", type=Path, help="a model folder, or a run directory")
    verb.add_argument("-o", "--out", metavar="FOLDER", type=Path, required=True, help="the new model's folder")
    verb.add_argument("--shares", type=_shares, help="of each model, such as 0.7,0.3 (default: equal)")
    verb.set_defaults(act=_soup)


def _shares(text: str) -> list[float]:
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = [-1.0]
    if not all(math.isfinite(share) and share > 0 for share in found):
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: numbers above 0 with commas between them")
    return found


def _soup(args: argparse.Namespace) -> int:
    from raydpo.rundir.published import published_model

    problems, folders = [], []
    for given in args.models:
        found = published_model(given)
        folders.append(found or given)
        problems += [] if found else [f"{given} is no model folder and no run directory with a model in it"]
    if len(args.models) < 2:
        problems.append(f"one model was given, {args.models[0]}: its mean is itself. Name at least two")
    if args.shares and len(args.shares) != len(args.models):
        problems.append(f"--shares has {len(args.shares)} numbers for {len(args.models)} models")
    if args.out.exists():
        problems.append(f"{args.out} exists; name another --out, or remove it")
    if problems:
        raise ConfigError([f"{problem}. Nothing was written." for problem in problems])
    shares = args.shares or [1.0] * len(folders)
    _write(folders, shares, args.out)
    if args.json:
        print_json({"model": str(args.out), "models": list(map(str, folders)), "shares": shares})
    else:
        print(
            f"{args.out}: the mean of {len(folders)} models. raydpo evaluate run.yaml evaluate.model={args.out} measures it"
        )
    return 0


def _write(folders: Sequence[Path], shares: Sequence[float], out: Path) -> None:
    from raydpo.artifacts import commit_folder
    from raydpo.disk import full_disk, removed_on_error
    from raydpo.models.soup import soup

    staging = out.with_name(f".{out.name}-work")
    shutil.rmtree(staging, ignore_errors=True)
    with full_disk(out), removed_on_error(staging):
        soup(folders, shares, staging)
        commit_folder(staging, out, {"soup": list(map(str, folders)), "shares": shares})
