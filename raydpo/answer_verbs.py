"""`raydpo generate` and `raydpo chat`: a model that is asked.

Comes in: the parsers of the command line. Goes out: two more verbs. Decision: nothing heavier than argparse until one runs.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError
from raydpo.json_result import print_json

_GENERATE = "answers of a model to prompts, as JSON lines"
_COMPARE = "which of two models answers better, by a judge: both orders, intervals, with length taken out"
_CHAT = "talk with a model, beside the one that it started from"
_MODEL = "a model folder, an adapter, a hub id, or the directory of a run"


def add(verbs: Any, machine: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    made = verbs.add_parser(
        "generate",
        parents=[machine],
        help=_GENERATE,
        description=_GENERATE,
        epilog="example: raydpo generate runs/first prompts.jsonl -o answers.jsonl --num-answers 2",
    )
    made.add_argument("model", metavar="MODEL", help=_MODEL)
    made.add_argument("prompts", metavar="PROMPTS", nargs="+", help="files, folders or globs of rows with `prompt`")
    made.add_argument("-o", "--out", type=Path, metavar="FILE", help="where answers go (default: stdout)")
    made.add_argument("--num-answers", type=_count, default=1, help="to each prompt (default: 1)")
    made.add_argument("--engine", default="transformers", help="transformers (default), vllm, or one of your own")
    made.set_defaults(act=_generate)
    talk = verbs.add_parser(
        "chat",
        help=_CHAT,
        description=_CHAT,
        epilog="example: raydpo chat runs/first --beside path-or-hub-id",
    )
    talk.add_argument("model", metavar="MODEL", help=_MODEL)
    talk.add_argument("--beside", metavar="MODEL", help="another model that answers the same, such as the start model")
    talk.set_defaults(act=_chat)
    against = verbs.add_parser(
        "compare",
        parents=[machine],
        help=_COMPARE,
        description=_COMPARE,
        epilog="example: raydpo compare runs/first path-or-hub-id prompts.jsonl --judge rounds.yaml",
    )
    against.add_argument("model", metavar="MODEL", help=_MODEL)
    against.add_argument("other", metavar="OTHER", help="the model that it is compared with")
    against.add_argument("prompts", metavar="PROMPTS", nargs="+", help="files, folders or globs of rows with `prompt`")
    against.add_argument("--judge", metavar="FILE", required=True, help="YAML with a section `judge`, as of rounds")
    against.set_defaults(act=_compare)
    for verb in (made, talk, against):
        verb.add_argument("--gpu", action="store_true", help="on a GPU, in bfloat16 (default: on the CPU, in float32)")
        verb.add_argument("--max-new-tokens", type=_count, help="of an answer (default: 256, or half of the positions)")
    for verb in (made, talk):
        verb.add_argument("--temperature", type=_number, default=0.0, help="0 (default): the likeliest token each time")
        verb.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: a whole number from 1")
    return int(text)


def _number(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: a number from 0")
    return found


def _generate(args: argparse.Namespace) -> int:
    from raydpo.answering.answer_file import AnswerRequest, answer_file

    if args.json and args.out is None:
        raise ConfigError("--json prints a summary where answers would go. Name a file for them with --out.")
    if not args.temperature and args.num_answers > 1:
        raise ConfigError(
            f"--num-answers {args.num_answers} with --temperature 0 would give the same answer {args.num_answers} times. "
            "Nothing was loaded. Set --temperature 1, or leave --num-answers out."
        )
    asked = AnswerRequest(
        args.model,
        args.prompts,
        args.num_answers,
        args.temperature,
        args.max_new_tokens,
        args.seed,
        args.engine,
        args.gpu,
    )
    with contextlib.ExitStack() as stack:
        out = sys.stdout if args.out is None else stack.enter_context(args.out.open("w", encoding="utf-8"))
        number = answer_file(asked, out, _told)
    if args.json:
        print_json({"model": args.model, "prompts": number, "answers": str(args.out)})
    return 0


def _compare(args: argparse.Namespace) -> int:
    from raydpo.answering.answer_file import greedy_answers
    from raydpo.answering.versus import compared, judged

    section = _judge_section(args.judge)
    rows = greedy_answers([args.model, args.other], args.prompts, args.max_new_tokens, use_gpu=args.gpu)
    found = compared(rows, *judged(section, rows))
    if args.json:
        print_json({"model": args.model, "other": args.other, **found.to_json()})
        return 0
    print(f"{args.model} against {args.other}, {found.prompts:,} prompts, each in both orders")
    print(f"  win rate            {found.win_rate:6.1%}  [{found.low:.1%}, {found.high:.1%}]")
    print(f"  at equal lengths    {found.controlled:6.1%}  [{found.controlled_low:.1%}, {found.controlled_high:.1%}]")
    print(f"  mean length         {found.mean_length:,.0f} and {found.other_length:,.0f} characters")
    print(f"  the first place won {found.first_place:6.1%}" + f"; not judged: {found.failed:,}" * bool(found.failed))
    return 0


def _judge_section(path: str) -> Any:
    """The section `judge` of a file. Raises ConfigError with every problem of it."""
    from raydpo.config.load import load

    section = load(path, ["run.dir=not-read", "model.path=not-read"]).config.judge
    if section is None:
        raise ConfigError(
            f"{path} has no section `judge`: nobody would say which answer is better. Nothing was loaded."
        )
    return section


def _told(done: int, total: int) -> None:
    print(f"{done:,} of {total:,} prompts", file=sys.stderr, flush=True)


def _chat(args: argparse.Namespace) -> int:
    from raydpo.answering.chatting import HELP, converse
    from raydpo.answering.open_model import open_model

    with contextlib.ExitStack() as stack:
        names = [args.model, *([args.beside] if args.beside else [])]
        models = [stack.enter_context(open_model(name, use_gpu=args.gpu)) for name in names]
        print(HELP, flush=True)
        sampling = [model.sampling(1, args.temperature, args.max_new_tokens) for model in models]
        converse(models, _lines(), sys.stdout, sampling, seed=args.seed)
    return 0


def _lines() -> Iterator[str]:
    """What a person types, until the end of input."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return
