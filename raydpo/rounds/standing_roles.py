"""Roles of a run of rounds beside generators and judge: trainers, reference workers, and models that score held-out answers.

Comes in: everything that a run has before its first round. Goes out: roles whose actors begin at their first work. Decision:
whether each stands to the end of the run is decided once, before a model is loaded, said, and noted in the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

from raydpo.driver.export_proof import StandingProver
from raydpo.driver.folder_scorer import FolderScorer
from raydpo.driver.room_to_stand import room_to_stand
from raydpo.driver.standing_scorers import StandingScorers
from raydpo.driver.standing_trainers import StandingTrainers
from raydpo.rounds.setup import Setup
from raydpo.schema.events import Note, Observer


@dataclass(frozen=True)
class StandingRoles:
    """Close them after use.

    trainers: ranks of the trainings, and the worker that loads what they publish. scorers: reference workers of the trainings.
    initial, reference: what an evaluation compares a policy with: the initial policy, and what log-ratios of its round were
        measured from.
    """

    trainers: StandingTrainers
    scorers: StandingScorers
    initial: FolderScorer
    reference: FolderScorer

    @classmethod
    def of(cls, setup: Setup, observer: Observer) -> StandingRoles:
        """In the session of the run. The judge of `setup` is told whether it stands."""
        config, layout, ledger = setup.config, setup.layout, setup.ledger
        room = room_to_stand(config, layout.initial, setup.engine.dtype, setup.judging.models.values())
        why_not = {
            "train": room.trainers,
            "export proof": room.trainers or ("it has a GPU" if config.train.gpus_per_worker else ""),
            "reference": room.reference,
            "judge": room.judge,
            "held-out scorers": room.scorer,
        }
        for role, clause in why_not.items():
            ledger.stands(role, not clause)
        if said := "; ".join(dict.fromkeys(filter(None, why_not.values()))):
            observer(Note("info", f"some roles are started for each of their turns: {said}"))
        setup.judging.stands = not room.judge

        prover = None if why_not["export proof"] else StandingProver(config.train, ledger)

        def scorer(role: str, *, moves: bool) -> FolderScorer:
            return FolderScorer(role, setup.engine, config.generate, ledger, stands=not room.scorer, moves=moves)

        return cls(
            StandingTrainers(observer, ledger, room.trainers, prover),
            StandingScorers(config, observer, ledger, room.reference),
            scorer("initial policy", moves=False),
            scorer("reference of a round", moves=layout.rounds.reference in ("previous_round", "ema")),
        )

    def close(self) -> None:
        """End all actors."""
        self.trainers.close()
        self.scorers.close()
        self.initial.close()
        self.reference.close()
