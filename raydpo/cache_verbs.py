"""`raydpo cache`: looking after the caches of reference log-probs.

In: parsed arguments. Out: text for people, or a line of JSON. Decision: nothing is imported before a verb is asked for; what is
at an address is looked at in its working copy, and collected in both.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import math
from pathlib import Path
from typing import Any

from raydpo.errors import UserError
from raydpo.json_result import print_json

_MOST_MEGABYTES = 1024
_GRACE_HOURS = 24.0


def add(verbs: Any, machine: argparse.ArgumentParser) -> None:
    """Add `cache` to the verbs of a parser. machine: the options for programs."""
    cache = verbs.add_parser("cache", help="look after the caches of reference log-probs")
    actions = cache.add_subparsers(dest="action", metavar="ACTION", required=True)
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--cache-dir", default=None, help="the reference.cache_dir of the runs (default: the default's)")
    actions.add_parser("list", parents=[machine, place], help="the caches there are").set_defaults(act=_list)
    verify = actions.add_parser("verify", parents=[machine, place], help="read every shard and compare its digest")
    verify.set_defaults(act=_verify)
    compact = actions.add_parser("compact", parents=[machine, place], help="merge small shards into large ones")
    compact.add_argument(
        "--shard-mb", type=_megabytes_of, default=64, metavar="MB", help="size of a merged shard (default: 64)"
    )
    compact.set_defaults(act=_compact)
    gc = actions.add_parser("gc", parents=[machine, place], help="remove leftovers, damaged shards and old caches")
    gc.add_argument("--older-than-days", type=_days, default=None, help="also caches that no run used for this long")
    gc.add_argument(
        "--runs",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a run directory, or a folder of some: their caches are never old; may be given several times",
    )
    gc.add_argument(
        "--grace-hours",
        type=_hours,
        default=_GRACE_HOURS,
        metavar="HOURS",
        help="what is younger stays (default: 24)",
    )
    gc.add_argument("--dry-run", action="store_true", help="say what would be removed, remove nothing")
    gc.set_defaults(act=_gc)


def _days(text: str) -> float:
    return _not_negative(text, "days")


def _hours(text: str) -> float:
    return _not_negative(text, "hours")


def _not_negative(text: str, unit: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not (math.isfinite(number) and number >= 0):
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: a number of {unit} >= 0")
    return number


def _megabytes_of(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST_MEGABYTES:
        raise argparse.ArgumentTypeError(
            f"given {text!r}; allowed: a whole number of megabytes, 1 to {_MOST_MEGABYTES:,}"
        )
    return int(text)


def _list(args: argparse.Namespace) -> int:
    from raydpo.artifacts import list_caches

    place = _cache_dir(args)
    found = list_caches(place)
    if not args.json:
        print(f"{place}: {len(found)} cache{'s' if len(found) != 1 else ''}")
        for info in found:
            used = datetime.date.fromtimestamp(info.last_used).isoformat()
            size = f"{info.rows:,} rows  {info.tokens:,} tokens  {_megabytes(info.bytes)}"
            print(f"  {info.digest}  {size}  last used {used}  {info.identity.get('dtype', '')}".rstrip())
    else:
        print_json({"cache_dir": str(place), "caches": [dataclasses.asdict(info) for info in found]})
    return 0


def _verify(args: argparse.Namespace) -> int:
    from raydpo.artifacts import verify_caches

    place = _cache_dir(args)
    checked, problems = verify_caches(place)
    if not args.json:
        print(f"{place}: {checked:,} shards read, {len(problems):,} damaged")
        for problem in problems:
            print(f"  {problem}")
        if problems:
            print("The next run that needs a damaged shard sets it aside and scores its rows again.")
    else:
        print_json({"cache_dir": str(place), "shards_checked": checked, "problems": problems})
    return 1 if problems else 0


def _compact(args: argparse.Namespace) -> int:
    from raydpo.artifacts import compact_cache
    from raydpo.artifacts.housekeeping import cache_folders

    place = _cache_dir(args)
    done = [compact_cache(folder, args.shard_mb << 20) for folder in cache_folders(place)]
    problems = [problem for cache in done for problem in cache.damaged]
    if not args.json:
        print(f"{place}: {len(done)} cache{'s' if len(done) != 1 else ''}")
        for cache in done:
            shards = f"{cache.shards_before:,} shards are {cache.shards:,}"
            print(f"  {cache.digest}  {shards}, {_megabytes(cache.bytes_before)} are {_megabytes(cache.bytes)}")
        for problem in problems:
            print(f"  {problem}")
        if any(cache.shards < cache.shards_before for cache in done):
            print("What was replaced stays for those who read it, until raydpo cache gc finds that nobody does.")
    else:
        print_json({"cache_dir": str(place), "caches": [dataclasses.asdict(cache) for cache in done]})
    return 1 if problems else 0


def _gc(args: argparse.Namespace) -> int:
    from raydpo.artifacts import collect_garbage
    from raydpo.artifacts.reached import reached_caches
    from raydpo.artifacts.remote_garbage import collect_stored
    from raydpo.config.places import is_in_store

    keep, grace_s = reached_caches(args.runs), args.grace_hours * 3600
    place, is_stored = _cache_dir(args, is_fetched=False), is_in_store(_given(args))
    if is_stored and args.older_than_days is not None:
        raise UserError(
            f"--older-than-days: {args.cache_dir} is an object store, where nobody knows when a cache was last read; allowed: "
            "folders. Nothing was removed. Leave it out, and remove a cache that no run needs by its address."
        )
    removals = collect_stored(_given(args), grace_s=grace_s, dry_run=args.dry_run) if is_stored else []
    removals += collect_garbage(
        place, older_than_days=args.older_than_days, keep=keep, dry_run=args.dry_run, grace_s=grace_s
    )
    freed = sum(removal.bytes for removal in removals)
    if not args.json:
        done = "would be removed" if args.dry_run else "removed"
        print(f"{place}: {len(removals):,} {done}, {_megabytes(freed)}")
        for removal in removals:
            print(f"  {removal.path}  {_megabytes(removal.bytes)}  {removal.reason}")
    else:
        listed = [dataclasses.asdict(removal) for removal in removals]
        print_json({"cache_dir": str(place), "dry_run": args.dry_run, "bytes": freed, "removals": listed})
    return 0


def _cache_dir(args: argparse.Namespace, *, is_fetched: bool = True) -> Path:
    """The folder that is looked at: of an address, that of working copies, with everything fetched where that is needed."""
    from raydpo.config.places import check_places, is_in_store

    given = _given(args)
    check_places({"reference.cache_dir": given})
    if is_in_store(given):
        from raydpo.artifacts import local_path
        from raydpo.artifacts.remote_cache import pull_caches

        return pull_caches(given) if is_fetched else local_path(given)
    place = Path(given).expanduser()
    if not place.is_dir():
        raise UserError(
            f"--cache-dir: {place} is not a folder; allowed: the reference.cache_dir of your runs. "
            "Nothing was read. Give the folder, or run raydpo precompute first."
        )
    return place


def _given(args: argparse.Namespace) -> str:
    from raydpo.config.sections import ReferenceSection

    return str(args.cache_dir or ReferenceSection.model_fields["cache_dir"].default)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
