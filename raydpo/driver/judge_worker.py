"""What a judge's actor does with a batch of rows: their verdicts, and on the way how far it is.

Comes in: a section of the config and the models that were found for it. Goes out: the callable that the pool asks.
Decision: the judge works in the main thread, where a deadline can end it and a stack shows it; only one that does nothing but
ask a server works beside a main thread that passes on what it says. Price: an ensemble of both says it after each batch.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from raydpo.config.round_sections import JudgeSection
from raydpo.generate.engine import EngineSpec
from raydpo.judge.asked import EVERY_S, Judged
from raydpo.judge.build import build_judge
from raydpo.judge.judge_inputs import Models, asks_server, local_model, reply_tokens, runs_named_code
from raydpo.judge.verdict import Row, Verdict, judge_row, judge_rows
from raydpo.runtime import News

Heard = Iterator[News | list[Verdict]]
"""What is said, and the verdicts last."""


def make_judge_worker(section: JudgeSection, engine: EngineSpec, models: Models) -> Callable[[Sequence[Row]], Heard]:
    """In the actor: build the judge, with a language model of its own where it is one without an endpoint."""
    complete = None
    if (name := local_model(section)) is not None:
        from raydpo.generate.complete import local_completer  # torch, which the driver does without

        folder, gpus = str(models[name].here()), section.gpus_per_worker
        spec = replace(
            engine,
            model=folder,
            use_gpu=gpus > 0,
            gpu_share=min(1.0, gpus) or 1.0,
            parallel=section.vllm.parallel(gpus),
            vllm=section.vllm,
            max_length=None,
        )
        complete = local_completer(spec, reply_tokens(section))
    news: queue.SimpleQueue[Any] = queue.SimpleQueue()
    judge = build_judge(section, complete, models, news.put)
    if asks_server(section) and not runs_named_code(section):
        return lambda rows: _beside(news, lambda: judge_rows(judge, rows))
    if hasattr(judge, "many"):
        return lambda rows: _and_then_said(news, judge_rows(judge, rows))
    return lambda rows: _one_by_one(lambda row: judge_row(judge, *row), rows)


def _and_then_said(news: queue.SimpleQueue[Any], verdicts: list[Verdict]) -> Heard:
    """What was said about `verdicts`, which are there already."""
    while not news.empty():
        yield News(news.get())
    yield verdicts


def _one_by_one(judged: Callable[[Row], Verdict], rows: Sequence[Row]) -> Heard:
    verdicts: list[Verdict] = []
    told_s = time.monotonic()
    for row in rows:
        verdicts.append(judged(row))
        if time.monotonic() - told_s >= EVERY_S:
            told_s = time.monotonic()
            yield News(Judged(len(verdicts)))
    yield verdicts


def _beside(news: queue.SimpleQueue[Any], work: Callable[[], list[Verdict]]) -> Heard:
    """`work` in a thread that puts what it says into `news`."""

    def run() -> None:
        try:
            news.put(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the work was asked for
            news.put(error)

    threading.Thread(target=run, name="judge", daemon=True).start()
    while not isinstance(event := news.get(), list | BaseException):
        yield News(event)
    if isinstance(event, BaseException):
        raise event
    yield event
