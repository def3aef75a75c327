"""A run in Python: what `raydpo.dpo` gives back, and what a run directory is opened as.

Comes in: a config and callbacks. Goes out: the run's summary, tables, folders, and a way to go on.
Decision: nothing is kept in memory that is not in the run directory, so that an opened run is the same as one that just ended.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from raydpo.artifacts import local_path
from raydpo.config import Config
from raydpo.errors import Stopped, UserError
from raydpo.front.callbacks import Callback, Callbacks
from raydpo.front.run_frames import framed, margins_frame, metrics_frame
from raydpo.run_report.run_facts import RunFacts, read_run
from raydpo.run_report.run_verdict import verdict_on


class AlignmentRun:
    """A run of one config. stopped_by: the callback that ended it; empty where none did. summary: what `summary.json` holds,
    None before the run is finished."""

    def __init__(self, config: Config) -> None:
        self.config, self.stopped_by = config, ""
        self.summary: dict[str, Any] | None = self._read_summary()

    @classmethod
    def open(cls, run_dir: str | os.PathLike[str]) -> Self:
        """The run in a run directory, without doing anything. Raises ConfigError where there is none."""
        return cls(Config.load(local_path(os.fspath(run_dir)) / "config.yaml"))

    @property
    def dir(self) -> Path:
        """The run directory, or its copy on this machine."""
        return local_path(self.config.run.dir)

    @property
    def model_dir(self) -> Path | None:
        """Folder of the trained model, for `from_pretrained`: `model/`, of a run that is not finished that of its newest
        checkpoint, None before there is one. Of a LoRA run the adapter."""
        if (self.dir / "model").is_dir():
            return self.dir / "model"
        from raydpo.rundir.checkpoints import newest_checkpoint

        newest, _ = newest_checkpoint(self.dir / "checkpoints")
        return None if newest is None else newest.folder / "model"

    @property
    def metrics(self) -> Any:
        """One row a step, a column a metric (a pandas DataFrame, without pandas a pyarrow Table); "eval/..." are means over the
        held-out examples."""
        return metrics_frame(self._facts)

    @property
    def margins(self) -> Any:
        """One row a held-out pair, in nats before beta: example, source, log_ratio_chosen, log_ratio_rejected, margin. Raises
        UserError where the run kept no pairs."""
        return margins_frame(self._facts)

    def samples(self, num_prompts: int = 5, max_new_tokens: int = 64) -> Any:
        """Greedy answers of the model before and after to the first held-out prompts (without such, training prompts), on the
        CPU in float32: columns prompt, before, after. Raises UserError before there is a model."""
        from transformers import AutoTokenizer

        from raydpo.artifacts import ExampleTable
        from raydpo.generate.greedy import greedy
        from raydpo.models.resolve import resolve_model

        if self.model_dir is None:
            raise UserError(f"{self.dir} holds no trained model yet. Call resume() first.")
        table = ExampleTable.open(self.dir / "data", "eval")
        table = table if len(table) else ExampleTable.open(self.dir / "data", "train")
        prompts = [table.prompt_ids(example).tolist() for example in range(min(num_prompts, len(table)))]
        start = resolve_model("model.path", self.config.model.path, self.config.model.revision).folder
        tokenizer = AutoTokenizer.from_pretrained(start)
        answers = [greedy(folder, prompts, max_new_tokens) for folder in (start, self.model_dir)]
        texts = [tokenizer.batch_decode(ids) for ids in (prompts, *answers)]
        return framed(dict(zip(("prompt", "before", "after"), texts, strict=True)))

    def report(self, out: str | os.PathLike[str] | None = None) -> Path:
        """Write the report of this run as one HTML file; its path. out: where, default `report.html` in the run directory."""
        from raydpo.run_report.write import write

        return write([self.dir], None if out is None else Path(out))

    def resume(self, callbacks: Callback | Sequence[Callback] = (), *, progress: bool = True) -> Self:
        """Go on from the newest checkpoint; of a finished run, nothing is computed. Returns this run.

        callbacks, progress: as of `raydpo.dpo`. Raises what a run raises.
        """
        from raydpo.pipelines import train

        observer = Callbacks(callbacks, progress=progress)
        self.stopped_by = ""
        try:
            with observer.shown():
                self.summary = train(self.config, observer)
        except Stopped:
            if not observer.stopped_by:
                raise
            self.stopped_by, self.summary = observer.stopped_by, None
        return self

    def _read_summary(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.dir / "summary.json").read_text())
        except (OSError, ValueError):
            return None
        return found

    @property
    def _facts(self) -> RunFacts:
        return read_run(self.dir)

    @property
    def verdict(self) -> str:
        """What came of it, in a sentence: better or not, with an interval of the held-out accuracy."""
        if self.summary is None:
            return (
                f"stopped by {self.stopped_by}; resume() goes on"
                if self.stopped_by
                else "not finished; resume() goes on"
            )
        return verdict_on(self._facts).sentences[0]

    def __repr__(self) -> str:
        return f"<{self.config.objective.name} in {self.config.run.dir}: {self.verdict}>"

    def _repr_html_(self) -> str:
        evals = (self.summary or {}).get("eval") or {}
        first, last = evals.get("first") or {}, evals.get("last") or {}
        rows = "".join(
            f"<tr><td>{html.escape(name.removeprefix('eval/'))}</td><td>{first[name]:.4f}</td><td>{last[name]:.4f}</td></tr>"
            for name in last
            if isinstance(first.get(name), float) and isinstance(last[name], float)
        )
        table = f"<table><tr><th>held-out</th><th>first</th><th>last</th></tr>{rows}</table>" if rows else ""
        head = f"<b>{html.escape(self.config.objective.name)}</b> in <code>{html.escape(self.config.run.dir)}</code>"
        return f"<div>{head}<p>{html.escape(self.verdict)}</p>{table}</div>"
