"""The folder of a local Ray session after its end: removed, or kept with the logs of what went wrong.

Comes in: the folder and how the session ended. Goes out: a line of logging where the logs are kept. Decision: what the user can
fix without Ray's logs, and what was stopped on purpose, leaves none.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from raydpo.errors import UserError

_LATEST = "session_latest"
"""A link that Ray makes next to the folder."""


def leave_logs(folder: Path, kind: type[BaseException] | None, *_: object) -> None:
    """Remove the session's `folder`, unless an error of `kind` may be explained in it."""
    if kind is not None and issubclass(kind, Exception) and not issubclass(kind, UserError):
        logging.getLogger("raydpo").warning("Ray's own logs of this session are kept in %s", folder / "logs")
        return
    shutil.rmtree(folder, ignore_errors=True)  # a process of Ray that ends late may still write
    latest = folder.with_name(_LATEST)
    with suppress(OSError):
        if latest.is_symlink() and not latest.exists():
            latest.unlink()
