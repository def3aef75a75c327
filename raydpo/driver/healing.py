"""Which losses of ranks a training survives: budgets, and what is said when they are spent.

Comes in: the error that ended a gang, and the step that was in work. Goes out: a line for the person who watches, or the error
again with what was tried. Decision: preemptions and failures have budgets of their own, as in Ray Train, and both are filled
again at each commit, because work that gets on may lose machines for weeks; what dies twice at one step without a commit
between is not bad luck but its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raydpo.errors import WorkerError


@dataclass
class Budget:
    """Of one training.

    max_failures: deaths that it survives since the last commit. max_preemptions: the same for machines that were taken away;
    None: any number.
    """

    max_failures: int
    max_preemptions: int | None
    failures: int = 0
    preemptions: int = 0
    last: tuple[int, str] | None = None

    def refill(self) -> None:
        """A checkpoint was committed."""
        self.failures, self.preemptions, self.last = 0, 0, None

    def spend(self, error: WorkerError, step: int, rows: Callable[[], str]) -> str:
        """Take a loss at step `step` (from 1). Returns how it is counted; raises WorkerError when the training ends of it.

        rows: the rows of that step, for the message.
        """
        if not error.cause.is_loss:
            raise error
        if error.cause.is_preemption:
            self.preemptions += 1
            self._stop_if(self.max_preemptions, self.preemptions, "max_preemptions", error)
            return f"preemption {self.preemptions} of {self.max_preemptions or 'any number'}"
        self.failures += 1
        self._stop_if(self.max_failures, self.failures, "max_failures", error)
        if error.was_idle:
            return f"failure {self.failures} of {self.max_failures}"
        if self.last == (step, error.cause.value):
            raise WorkerError(
                f"{error} It is the second time at step {step} without a checkpoint between, so another try would end the same "
                f"way. Its rows: {rows()}. The same command goes on from the last checkpoint.",
                error.cause,
                error.rank,
            ) from error
        self.last = (step, error.cause.value)
        return f"failure {self.failures} of {self.max_failures}"

    def _stop_if(self, most: int | None, number: int, key: str, error: WorkerError) -> None:
        if most is None or number <= most:
            return
        tried = f" It was number {number} since the last commit, and train.{key} is {most}." if most else ""
        raise WorkerError(
            f"{error}{tried} The same command goes on from the last checkpoint.", error.cause, error.rank
        ) from error
