"""The report at the end of a run: written beside its summary, and never a reason for the run to fail.

Comes in: a run directory whose summary is written. Goes out: `report.html` in it, said in one line. Decision: whatever goes
wrong becomes a warning; the run is over and good, and `raydpo report` makes the page again.
"""

from __future__ import annotations

from pathlib import Path

from raydpo.artifacts.lease import fence, settle
from raydpo.errors import RaydpoError
from raydpo.run_report.write import command_line, write
from raydpo.schema.events import Note, Observer

NAME = "report.html"


def report_at_end(run_dir: Path, observer: Observer) -> None:
    """Write `report.html`; a problem is told."""
    path = run_dir / NAME
    try:
        fence(path)
        write([run_dir], path, command_line())
        settle(path)
    except RaydpoError:
        raise  # the run was taken over, or its disk is full
    except Exception as error:  # noqa: BLE001 - a page is no reason to fail a run that is over
        observer(
            Note(
                "warning",
                f"no report was written: {type(error).__name__}: {error}. raydpo report {run_dir} tries again",
            )
        )
        return
    observer(Note("info", f"{path} says how it went"))
