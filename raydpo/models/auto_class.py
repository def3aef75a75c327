"""Which class of transformers reads a checkpoint: a causal language model, or one that reads images and writes text.

Comes in: config.json as it stands. Goes out: an auto class. Decision: a multimodal checkpoint is loaded whole, so that what is
exported still has its towers; only its text part is trained. The price is their memory.
"""

from __future__ import annotations

from typing import Any


def is_multimodal(described: dict[str, Any]) -> bool:
    """Whether config.json has a part that reads text among parts that read something else."""
    others = [name for name in described if name.endswith("_config") and isinstance(described[name], dict)]
    return "text_config" in others and any(name in others for name in ("vision_config", "audio_config"))


def auto_class(described: dict[str, Any]) -> Any:
    """The auto class of transformers for the checkpoint with this config.json."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as WITH_IMAGES

    has_images = is_multimodal(described) and described.get("model_type") in WITH_IMAGES
    return AutoModelForImageTextToText if has_images else AutoModelForCausalLM
