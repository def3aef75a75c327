"""What the processes that a driver starts on this machine inherit of it: where it finds modules, how many CPUs it declares."""

from __future__ import annotations

import os
import sys
from pathlib import Path

LOCAL_CPUS_VARIABLE = "RAYDPO_LOCAL_CPUS"
"""Number of CPUs that this machine pretends to have. For tests of many workers on few cores."""


def import_path() -> list[str]:
    """The driver's sys.path without what every interpreter of this installation has anyway, raydpo's parent first."""
    installed = tuple(str(Path(prefix)) + os.sep for prefix in {sys.prefix, sys.base_prefix, sys.exec_prefix})
    package_parent = str(Path(__file__).resolve().parents[2])
    driver = [os.path.abspath(entry) for entry in sys.path]
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    wanted = [package_parent, *driver, *(entry for entry in inherited if entry)]
    return list(dict.fromkeys(entry for entry in wanted if not entry.startswith(installed)))
