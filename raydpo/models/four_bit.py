"""A base in 4 bits, described: how its matrices are packed, and what the folder of an adapter says of it. No torch.

Comes in: settings of a run, or the folder of an adapter that was trained on such a base. Goes out: a `FourBit`. Decision: PEFT
keeps no word on how a base was quantised, so that an adapter would be loaded on another model than the one that it was
trained on; a file beside it says so in the words of transformers, and is read wherever an adapter is.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError
from raydpo.schema.json_text import read_object

# On some CPUs it asks, wherever PEFT is imported, for a kernel of the hub that is not used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

QUANTISATION = "base_quantization.json"
"""In the folder of an adapter: arguments of transformers' BitsAndBytesConfig for its base."""
OLDEST = (0, 50)
"""Version of bitsandbytes."""
_FIXED: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


@dataclass(frozen=True)
class FourBit:
    """Linear layers packed to nf4 with double quantisation when they are loaded.

    dtype: "float32" or "bfloat16": of weights before they are packed, of what they unpack to, and of the computation.
    kept: modules that stay as they are, beside the head, by the ends of their names.
    """

    dtype: str
    kept: tuple[str, ...] = ()

    def described(self) -> dict[str, Any]:
        """What a digest of the packed model is made of, beside its weights."""
        return {"packed": "nf4", **asdict(self), "kept": sorted(self.kept)}

    def arguments(self) -> dict[str, Any]:
        """Of BitsAndBytesConfig, where `kept` is every module that stays."""
        return {**_FIXED, "bnb_4bit_compute_dtype": self.dtype, "llm_int8_skip_modules": sorted(self.kept)}

    def write(self, adapter: Path) -> None:
        """Beside the adapter in that folder."""
        (adapter / QUANTISATION).write_text(json.dumps(self.arguments(), indent=2, sort_keys=True) + "\n")


def packing_of(adapter: Path) -> FourBit | None:
    """How the base was packed that the adapter in that folder was trained on; None where it was not. Raises ConfigError."""
    path = adapter / QUANTISATION
    if not path.is_file():
        return None
    try:
        found = read_object(path)
        four_bit = FourBit(found["bnb_4bit_compute_dtype"], tuple(map(str, found["llm_int8_skip_modules"])))
        is_known = found == four_bit.arguments() and four_bit.dtype in ("float32", "bfloat16")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}. Nothing was loaded. Is the adapter whole?") from error
    if not is_known:
        raise ConfigError(
            f"{path} asks for another base than nf4 with double quantisation in float32 or bfloat16, which is what "
            "train.lora.quantize_base makes; the adapter would have been put on a model that it was not trained on. Nothing "
            "was loaded. Merge it into its base with what trained it, and name the merged model."
        )
    return four_bit


def lacks_bitsandbytes() -> str | None:
    """Why nothing can be packed on this machine; None where it can."""
    install = "Install it: pip install -c constraints.txt '.[qlora]' in the folder of raydpo"
    try:
        there = version("bitsandbytes")
    except PackageNotFoundError:
        return f"needs bitsandbytes, which is not installed here. {install}"
    if tuple(int(part) for part in there.split(".")[:2] if part.isdigit()) < OLDEST:
        return f"needs bitsandbytes {'.'.join(map(str, OLDEST))} or newer, and {there} is installed. {install}"
    return None
