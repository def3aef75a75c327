"""The command line: verbs to pipelines, errors to exit codes.

In: argv. Out: human text on stdout; with --json the text goes to stderr and the last line of stdout is the summary.
Exit codes: 0 done, 2 something the user can fix (all problems, no traceback), 1 other failures, 130 Ctrl-C, 143 SIGTERM.
Decision: torch, ray and arrow are imported by the verb that needs them, after the config was found good, so that
--help, `config` and every config error answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from raydpo import answer_verbs, cache_verbs, import_verb, inspect_verb, plan_verb, report_verb, soup_verb, sweep_verb
from raydpo.errors import RaydpoError, Stopped, UserError
from raydpo.json_result import print_json
from raydpo.redaction import redacted

if TYPE_CHECKING:
    from raydpo.config import Config

_RUN_VERBS = {
    "precompute": "reference log-probs only: score what the cache lacks",
    "train": "precompute what is missing, train, evaluate; the same command resumes",
    "check": "config and data, prompts and judge of rounds; loads no model and starts no Ray",
    "evaluate": "held-out preference metrics of a model folder or checkpoint",
    "iterate": "on-policy rounds: sample, judge, train, repeat; the same command resumes",
}

_RESUMED = ("precompute", "train", "iterate")
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EIO}
"""What a file system says, wherever it is met: no fault of the program."""

_FUNCTIONS = {"iterate": "run_rounds"}
_MOST_ROWS = 10_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    args = _arguments(list(sys.argv[1:] if argv is None else argv))
    command = " ".join(word for word in ("raydpo", args.verb, getattr(args, "action", None)) if word)
    try:
        with _ended_by_sigterm():
            code: int = args.act(args)
        sys.stdout.flush()
    except UserError as error:
        _complain(command, error.problems)
        code = error.exit_code
    except RaydpoError as error:
        _complain(command, [f"{type(error).__name__}: {error}"])
        code = error.exit_code
    except KeyboardInterrupt as error:
        again = " The same command goes on from what was committed." if args.verb in _RESUMED else ""
        _complain(command, [f"{error if isinstance(error, Stopped) else 'stopped by Ctrl-C.'}{again}"])
        code = error.exit_code if isinstance(error, Stopped) else 130
    except BrokenPipeError:  # `raydpo config schema | head`: the reader has what it wanted
        _silence_stdout()
        code = 1
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        _complain(
            command, [f"{error.filename or 'a file'}: {error.strerror}. Make the place usable, then run it again."]
        )
        code = 2
    except Exception:  # a bug, told by Python itself unless its text holds a secret
        told = traceback.format_exc()
        if redacted(told) == told:
            raise
        _complain(command, [redacted(told)])
        code = 1
    return code


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM says its sentence before a run watches for it, too."""
    from raydpo.runtime.stops import handlers_kept

    def stop(signum: int, _: object) -> None:
        raise Stopped(signum)

    with handlers_kept():
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stop)
        yield


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # set by the shell while Tab is pressed
        import argcomplete

        argcomplete.autocomplete(parser)
    args, extra = parser.parse_known_args(argv)
    late = [word for word in extra if "=" in word and not word.startswith("-")]
    wrong = [word for word in extra if word not in late]
    if wrong or (late and not hasattr(args, "overrides")):
        hint = f"; config values are given without dashes: {meant}" if (meant := _meant(extra)) else ""
        parser.error(f"unrecognized arguments: {' '.join(wrong or late)}{hint}")
    if late:
        args.overrides = [*args.overrides, *late]
    return args


def _meant(words: Sequence[str]) -> str:
    """A config value that was written as an option, as it is written here; empty where no word is one."""
    from raydpo.config.key_names import keys_named

    for place, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, _, value = word[2:].partition("=")
        follows = place + 1 < len(words) and not words[place + 1].startswith("-")
        value = value or (words[place + 1] if follows else "VALUE")
        if "." in name:
            return f"{name}={value}"
        if found := keys_named(name.replace("-", "_")):
            return " or ".join(f"{key}={value}" for key in found)
    return ""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(redacted(message))


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog="raydpo",
        description="Direct preference optimisation on Ray.",
        epilog="Config values can be given after the file: raydpo train run.yaml train.learning_rate=5e-7",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--json", action="store_true", help="the result as JSON on the last line of stdout")
    runner = argparse.ArgumentParser(add_help=False)
    runner.add_argument("--local", action="store_true", help="without Ray: run.runtime=local")
    source = argparse.ArgumentParser(add_help=False)
    source.add_argument("config", metavar="run.yaml", help="the YAML file of the run")
    source.add_argument("overrides", metavar="section.key=value", nargs="*", help="config values that win over it")

    for verb, text in _RUN_VERBS.items():
        parents = [machine, runner, source]
        verbs.add_parser(verb, parents=parents, help=text, description=text).set_defaults(act=_run)
    verbs.choices["check"].add_argument(
        "--show",
        type=_num_rows,
        default=0,
        metavar="N",
        help="also the first N used rows of each split as tokens with ids, and where they differ from apply_chat_template",
    )
    quick = verbs.add_parser(
        "quickstart", parents=[machine, runner], help="a whole small run: no file, no download, no GPU"
    )
    quick.add_argument("--run-dir", help="where its outputs go (default: runs/quickstart/seed-SEED)")
    quick.add_argument("--seed", type=_seed, default=0, help="seed of the data and the models (default: 0)")
    quick.add_argument(
        "--rounds", action="store_true", help="pairs of another model's mistakes: offline DPO, then on-policy rounds"
    )
    quick.set_defaults(act=_quickstart)

    listed = verbs.add_parser("objectives", parents=[machine], help="the objectives, their papers and parameters")
    listed.add_argument("names", metavar="NAME", nargs="*", help="these alone; package.module:name is one of your own")
    listed.add_argument("--markdown", action="store_true", help="as the page docs/objectives.md")
    listed.add_argument("--html", action="store_true", help="as an interactive page: the file docs/explorer.html")
    listed.set_defaults(act=_objectives)

    shown = verbs.add_parser(
        "formats", parents=[machine], help="layouts of rows, and names of columns that mean something"
    )
    shown.add_argument("--markdown", action="store_true", help="as the page docs/data.md")
    shown.set_defaults(act=_formats)

    doctor = verbs.add_parser(
        "doctor", parents=[machine], help="what of this machine, its stack and its disks stands in the way"
    )
    doctor.add_argument("config", metavar="run.yaml", nargs="?", help="look at the folders of this run")
    doctor.add_argument("overrides", metavar="section.key=value", nargs="*", help="config values that win over it")
    doctor.set_defaults(act=_doctor)

    plan_verb.add(verbs, [machine, source], _plan)
    sweep_verb.add(verbs, [machine, runner, source], _sweep)

    config = verbs.add_parser("config", help="look at the configuration without running anything")
    actions = config.add_subparsers(dest="action", metavar="ACTION", required=True)
    described = actions.add_parser("schema", help="JSON schema of the YAML file, for editors")
    described.add_argument("--markdown", action="store_true", help="as the page docs/config.md")
    described.set_defaults(act=_config_schema)
    shown = actions.add_parser(
        "show", parents=[machine, source], help="the resolved config and where each value is from"
    )
    shown.set_defaults(act=_config_show)

    import_verb.add(verbs, [machine])
    cache_verbs.add(verbs, machine)
    soup_verb.add(verbs, machine)
    inspect_verb.add(verbs, machine)
    answer_verbs.add(verbs, machine)
    report_verb.add(verbs, machine)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *unused: Any) -> None:
        from raydpo import __version__

        print(f"raydpo {__version__}")
        parser.exit(0)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: a whole number >= 0 and < {2**31}")
    return int(text)


def _num_rows(text: str) -> int:
    if not text.isdecimal() or int(text) > _MOST_ROWS:
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: a whole number of rows, 0 to {_MOST_ROWS:,}")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    from raydpo.config.load import load

    overrides = [*args.overrides, "run.runtime=local"] if args.local else args.overrides
    config = load(args.config, overrides, args.verb, partial(_beyond_config, args.verb)).config

    def work(observer: Callable[[Any], None]) -> dict[str, Any]:
        import raydpo.pipelines as pipelines
        from raydpo.runtime.bulk_import import uncollected

        more = {"show": args.show} if args.verb == "check" else {}
        with uncollected():
            verb = getattr(pipelines, _FUNCTIONS.get(args.verb, args.verb))
        summary: dict[str, Any] = verb(config, observer=observer, **more)
        return summary

    return _with_screen(args, work)


def _sweep(args: argparse.Namespace) -> int:
    from raydpo.config.load import load

    overrides = [*args.overrides, "run.runtime=local"] if args.local else args.overrides
    chosen = sweep_verb.combinations(args.over)
    configs = sweep_verb.loaded(args.config, overrides, chosen, load)
    folder = Path(configs[0].run.dir).parent

    def work(observer: Callable[[Any], None]) -> dict[str, Any]:
        from raydpo.sweep import Trial, sweep

        trials = [Trial(values, config) for values, config in zip(chosen, configs, strict=True)]
        return sweep(trials, folder, observer)

    return _with_screen(args, work)


def _beyond_config(verb: str, config: Config) -> list[str]:
    """Problems of the models and judges that a config names, looked for where the config itself has problems."""
    from raydpo.config.section_base import is_known
    from raydpo.rundir.named_models import problems_on_disk

    problems = problems_on_disk(config)
    if verb in ("iterate", "check") and is_known(config, "rounds") and config.rounds is not None:
        from raydpo.rounds.preflight import problems_of_parts

        problems += problems_of_parts(config, asks_hub=False)
    return problems


def _quickstart(args: argparse.Namespace) -> int:
    def work(observer: Callable[[Any], None]) -> dict[str, Any]:
        import raydpo.quickstart as room
        from raydpo.runtime.bulk_import import uncollected

        place = "rounds" if args.rounds else "quickstart"
        run_dir = args.run_dir or f"runs/{place}/seed-{args.seed}"
        with uncollected():
            job = room.quickstart_rounds if args.rounds else room.quickstart
        kind = "local" if args.local else "ray"
        summary: dict[str, Any] = job(run_dir=run_dir, seed=args.seed, observer=observer, kind=kind)
        return summary

    return _with_screen(args, work)


def _with_screen(args: argparse.Namespace, work: Callable[[Callable[[Any], None]], dict[str, Any]]) -> int:
    from raydpo.screen import Screen, print_summary

    _quiet_libraries()
    with _human_stream(args.json) as human:
        with Screen(human) as screen:
            summary = work(screen)
        if summary.get("rows"):
            from raydpo.row_screen import print_rows

            print_rows(summary["rows"], human)
        print_summary(summary, human)
    if args.json:
        print_json(summary)
    return 0


def _quiet_libraries() -> None:
    """Keep chatter that tells the user nothing off the screen: the accelerator that DeepSpeed guesses on the driver."""
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)


@contextlib.contextmanager
def _human_stream(as_json: bool) -> Iterator[TextIO]:
    """Where text for people goes. With --json also everything that libraries print goes to stderr."""
    if not as_json:
        yield sys.stdout
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield sys.stderr


def _config_schema(args: argparse.Namespace) -> int:
    from raydpo.config.reference_page import reference_page
    from raydpo.config.render import schema

    print(reference_page() if args.markdown else json.dumps(schema(), indent=2), end="" if args.markdown else "\n")
    return 0


def _config_show(args: argparse.Namespace) -> int:
    from raydpo.config.load import load
    from raydpo.config.render import dump

    loaded = load(args.config, args.overrides)
    if args.json:
        print_json({"config": loaded.config.model_dump(mode="json"), "origins": dict(loaded.origins)})
    else:
        print(dump(loaded.config, loaded.origins), end="")
    return 0


def _objectives(args: argparse.Namespace) -> int:
    from raydpo.config.objective_door import rows_of
    from raydpo.config.objective_page import notes, page, table
    from raydpo.metrics import declared

    rows = rows_of(args.names)
    if args.html:
        from raydpo.picture.page import page as interactive

        print(interactive(args.names), end="")
    elif args.json:
        print_json({"objectives": [dataclasses.asdict(row) for row in rows]})
    else:
        print(page() + declared.page() if args.markdown else "\n".join([*table(rows), *notes(), ""]), end="")
    return 0


def _formats(args: argparse.Namespace) -> int:
    from raydpo.data.column_names import KINDS
    from raydpo.data.formats import FORMATS
    from raydpo.data.names_page import page, terminal_tables

    if args.json:
        layouts = {layout.name: layout.title for layout in FORMATS.values()}
        print_json({"formats": layouts, "columns": [dataclasses.asdict(kind) for kind in KINDS]})
    else:
        print(page() if args.markdown else "\n".join([*terminal_tables(), ""]), end="")
    return 0


def _plan(args: argparse.Namespace) -> int:
    from raydpo.capacity.asked_plan import planned
    from raydpo.config.load import load

    config = load(args.config, args.overrides, "check", partial(_beyond_config, "check")).config
    _quiet_libraries()
    with _human_stream(args.json) as human:
        plan, lines = planned(config, vars(args))
        print("\n".join(lines), file=human)
    if args.json:
        print_json(plan)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from raydpo.artifacts.mirror_path import local_path
    from raydpo.config.load import load
    from raydpo.config.sections import ReferenceSection
    from raydpo.doctor import examine_all

    folders = {"run.dir": "runs", "reference.cache_dir": ReferenceSection.model_fields["cache_dir"].default}
    if args.config is not None:
        config = load(args.config, args.overrides).config
        folders = {"run.dir": config.run.dir, "reference.cache_dir": config.reference.cache_dir}
    findings = examine_all({key: local_path(folder) for key, folder in folders.items()})
    failed = any(finding.level == "fail" for finding in findings)
    if args.json:
        print_json({"ok": not failed, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        width = max(len(finding.name) for finding in findings)
        print("\n".join(f"{finding.level:4}  {finding.name:{width}}  {finding.text}" for finding in findings))
    return 1 if failed else 0


def _complain(command: str, problems: Sequence[str]) -> None:
    lines = [f"{command}: {problems[0]}"] if len(problems) == 1 else [f"{command}: {len(problems)} problems"]
    if len(problems) > 1:
        lines += [f"  - {problem}" for problem in problems]
    text = redacted("\n".join(lines)).encode("utf-8", "backslashreplace").decode()
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _silence_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
