"""`check`: config, data, prompts and judge, before anything is started. Order and nothing else.

Decision: nothing here loads a model, starts a worker or imports torch, so that an answer comes at once.
"""

from __future__ import annotations

from typing import Any

from raydpo.config import Config
from raydpo.driver.data_stage import planned_steps, shown_data
from raydpo.driver.disk_room import said_of_room
from raydpo.rounds.setup import examine
from raydpo.rundir.workspace import find_workspace
from raydpo.schema.events import Note, Observer, ignore


def check(config: Config, observer: Observer = ignore, *, show: int = 0) -> dict[str, Any]:
    """Config and data, without loading a model, starting Ray or writing anything. With `rounds`: prompts and judge, and
    data where there is any. show: so many used rows of each split come as tokens under `rows`."""
    rounds = {} if config.rounds is None else examine(config, observer)
    if rounds and not (config.data.train or config.data.eval):
        return rounds
    workspace = find_workspace(config, "check")
    for text in workspace.copies:
        observer(Note("info", text))
    data, rows = shown_data(workspace, observer, show)
    plan = planned_steps(workspace.config, data)
    if plan and (room := said_of_room(workspace, plan["steps"], has_eval=data.eval_pairs > 0)):
        text, fits = room
        observer(Note("info" if fits else "warning", text if fits else f"{text}: a training will be refused"))
    return {
        **rounds,
        "run_dir": workspace.place,
        "data": data.to_json(),
        "plan": plan,
        **({"rows": rows} if show else {}),
    }
