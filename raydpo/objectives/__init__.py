"""Objectives: tensors in, loss out; one file each. `OBJECTIVE_CLASSES` implements exactly the names of the config's table.

How to add one: a frozen dataclass of its parameters with the base `Objective` in a file of its own, a row in
`raydpo.config.objective_table`, an entry here, golden values in tests/objectives.
"""

from collections.abc import Mapping

from raydpo.objectives.alphapo import AlphaPO
from raydpo.objectives.aot import AOT, AOTUnpaired
from raydpo.objectives.apo_down import APODown
from raydpo.objectives.apo_zero import APOZero
from raydpo.objectives.apo_zero_unpaired import APOZeroUnpaired
from raydpo.objectives.bco import BCO
from raydpo.objectives.bco_pair import BCOPair
from raydpo.objectives.cpo import CPO
from raydpo.objectives.discopop import DiscoPOP
from raydpo.objectives.dpo import CDPO, DPO
from raydpo.objectives.dpo_norm import DPONorm
from raydpo.objectives.dpop import DPOP
from raydpo.objectives.exo import EXO
from raydpo.objectives.fdpo_alpha import FDPOAlpha
from raydpo.objectives.fdpo_forward_kl import FDPOForwardKL
from raydpo.objectives.fdpo_js import FDPOJensenShannon
from raydpo.objectives.hinge import Hinge
from raydpo.objectives.ipo import IPO
from raydpo.objectives.ipo_mean import IPOMean
from raydpo.objectives.kto import KTO
from raydpo.objectives.nca import NCA
from raydpo.objectives.nll import NLL
from raydpo.objectives.orpo import ORPO
from raydpo.objectives.robust import Robust
from raydpo.objectives.seam import Objective, ObjectiveInput, ObjectiveOutput
from raydpo.objectives.sft import SFT
from raydpo.objectives.simpo import SimPO
from raydpo.objectives.slic import SLiC
from raydpo.objectives.sppo import SPPO

OBJECTIVE_CLASSES: dict[str, type[Objective]] = {
    "cdpo": CDPO,
    "dpo": DPO,
    "alphapo": AlphaPO,
    "aot": AOT,
    "aot_unpaired": AOTUnpaired,
    "apo_down": APODown,
    "apo_zero": APOZero,
    "apo_zero_unpaired": APOZeroUnpaired,
    "bco": BCO,
    "bco_pair": BCOPair,
    "cpo": CPO,
    "discopop": DiscoPOP,
    "dpo_norm": DPONorm,
    "dpop": DPOP,
    "exo": EXO,
    "fdpo_alpha": FDPOAlpha,
    "fdpo_forward_kl": FDPOForwardKL,
    "fdpo_js": FDPOJensenShannon,
    "hinge": Hinge,
    "ipo": IPO,
    "ipo_mean": IPOMean,
    "kto": KTO,
    "nca": NCA,
    "nll": NLL,
    "orpo": ORPO,
    "robust": Robust,
    "sft": SFT,
    "simpo": SimPO,
    "slic": SLiC,
    "sppo": SPPO,
}


def make_objective(name: str, parameters: Mapping[str, float]) -> Objective:
    """The objective `name` with its validated parameters."""
    return OBJECTIVE_CLASSES[name](**parameters)


__all__ = ["OBJECTIVE_CLASSES", "Objective", "ObjectiveInput", "ObjectiveOutput", "make_objective"]
