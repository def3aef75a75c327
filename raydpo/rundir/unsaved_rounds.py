"""Rounds whose policy is on no disk: which they are, and where their trainings lie meanwhile.

Comes in: a folder in memory, or none. Goes out: whether a round is saved, and run directories of trainings. Decision: an
unsaved training is an ordinary run directory in shared memory, so that whoever needs the folder of a policy finds one. Price: a
few models in the main memory of the node.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from raydpo.artifacts.shared_folder import SharedFolder


class UnsavedRounds:
    """every: of so many rounds one is saved; 1 until `begin`."""

    def __init__(self) -> None:
        self.every = 1
        self._folder: SharedFolder | None = None

    @property
    def folder(self) -> Path | None:
        """Where trainings of unsaved rounds lie; None where there are none in this attempt."""
        return None if self._folder is None else self._folder.path

    def begin(self, folder: SharedFolder, every: int) -> None:
        """Save one of `every` rounds from here on, and keep the others in `folder`, which is closed with this."""
        self._folder, self.every = folder, every

    def saves(self, index: int) -> bool:
        """Whether round `index` is one of those that are saved."""
        return (index + 1) % self.every == 0

    def training(self, index: int) -> Path | None:
        """Run directory of the training of round `index` in memory; None where it has none."""
        found = None if self.folder is None else self.folder / f"{index:03d}" / "train"
        return found if found is not None and found.is_dir() else None

    def make(self, index: int) -> Path:
        """Make that run directory; of a training that is made again, without its checkpoints."""
        assert self.folder is not None
        path = self.folder / f"{index:03d}" / "train"
        shutil.rmtree(path / "checkpoints", ignore_errors=True)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def keep(self, indices: set[int]) -> None:
        """Forget the trainings of all other rounds."""
        for path in () if self.folder is None else self.folder.iterdir():
            if int(path.name) not in indices:
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Forget everything."""
        if self._folder is not None:
            self._folder.close()
        self._folder, self.every = None, 1
