"""Chat templates of model families, read from the installed trl and vLLM, each with a small vocabulary that has its special
tokens.

What comes in: nothing. What goes out: names, and a tokenizer folder for each. None of the templates is copied here. vLLM's
wheel has fewer than its repository: those that it falls back to for models without a template of their own.
"""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

_TOKENS = re.compile(r"<[|\uff5c][^<>]{1,40}[|\uff5c]>|</?[a-z_]+>|\[/?[A-Z_]+\]")
_WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


def names() -> list[str]:
    """Families whose templates trl has; those that it changed for training are left out."""
    found = (file.name.removesuffix(".jinja") for file in (files("trl") / "chat_templates").iterdir())
    return sorted(name for name in found if not name.endswith(("_training", ".md", ".py")) and "__" not in name)


def names_of_vllm() -> list[str]:
    """Templates in vLLM's wheel, each as "vllm/name"; none where it is not installed."""
    folder = _folder_of_vllm()
    return sorted(f"vllm/{path.stem.removeprefix('template_')}" for path in folder.glob("*.jinja")) if folder else []


def _folder_of_vllm() -> Path | None:
    """Where vLLM keeps its templates, without importing it; None without vLLM."""
    found = find_spec("vllm")
    return Path(found.origin).parent / "transformers_utils/chat_templates" if found and found.origin else None


def source(name: str) -> str:
    """The template of a family."""
    if name.startswith("vllm/"):
        folder = _folder_of_vllm()
        assert folder is not None, name
        return (folder / f"template_{name.removeprefix('vllm/')}.jinja").read_text(encoding="utf-8")
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def save(template: str, folder: Path) -> Path:
    """A tokenizer of bytes with the special tokens of `template`, and the template. It has a BOS where the template writes one,
    and ends where the template ends an answer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bos, eos = ("<s>" if "bos_token" in template else None), _end(template)
    found = sorted({eos, *([bos] if bos else []), *_TOKENS.findall(template)})
    special = [AddedToken(token, special=True, normalized=False) for token in found if token not in _WORDS]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in found if token in _WORDS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(str(folder))
    return folder


def _end(template: str) -> str:
    """The last special token that the template writes behind an answer, </s> where it writes none."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    roles = ("user", "assistant")
    plain: list[dict[str, object]] = [{"role": role, "content": role} for role in roles]
    parts: list[dict[str, object]] = [{"role": role, "content": [{"type": "text", "text": role}]} for role in roles]
    for turns in (plain, parts):
        try:
            (written,), _ = render_jinja_template([turns], chat_template=template, bos_token="<s>", eos_token="</s>")
        except (TemplateError, TypeError):
            continue
        found = _TOKENS.findall(written.rpartition("assistant")[2]) if "assistant" in written else []
        if found:
            return str(found[-1])
    return "</s>"
