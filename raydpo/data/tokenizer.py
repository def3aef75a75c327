"""The tokenizer of a model folder or hub id, reading text in two ways: with and without control tokens.

What comes in: a path, and texts. What goes out: lists of token ids, no BOS or EOS added.
Decision: to read a control token as plain text, a second copy of the tokenizer is made in which every control token
is spelled as a private-use alias. Text then cannot name one, and whoever may write one (the chat template) writes the
alias. The text is still tokenised in one piece, so nothing else changes. Price: one copy of the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from raydpo.data.prompt_cut import can_cut
from raydpo.data.row_ends import RowEnds, own_ends
from raydpo.errors import DataError

_ALIAS = "\U0010fffc{}\U0010fffd"
_MARK = "\U0010fffa{}\U0010fffb"
_PRIVATE = re.compile("[\U0010fffa-\U0010fffd]")
_MARKED = re.compile("\U0010fffa(\\d+)\U0010fffb")
_SHAPED = re.compile("<[|\uff5c].*[|\uff5c]>", re.DOTALL)

_NO_PART_OF_IDS = ("version", "truncation", "padding", "post_processor")

# What publishers call their tokens, for a tokenizer.json that comes without its tokenizer_config.json.
_BARE_EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "<|eot_id|>", "[EOS]")
_BARE_BOS = ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]")


class Unreadable(Exception):
    """A text holds control tokens that this tokenizer cannot read as plain text."""


class TextTokenizer:
    """Tokenizer of `path`, without torch and without code of others.

    bos_id, eos_id: ids or None.
    control: pattern of every control token.
    ends: how rows begin and end; as the files of `path` say, until `data.bos` and `data.eos` are known.
    num_beyond: conversations for which its template took too much, so far.
    digest: of everything that decides the ids of a row of text or messages.
    ids_digest: of what ids mean, for ids that are there already.
    """

    def __init__(self, path: str, chat_template: str | None = None) -> None:
        self.path, self.num_beyond = path, 0
        self.tokenizer = _fast_tokenizer(path)
        if chat_template is not None:
            self.tokenizer.chat_template = chat_template
        written: str = self.tokenizer.backend_tokenizer.to_str()
        names = {name: str(value) for name, value in self.tokenizer.special_tokens_map.items()}
        facts = json.dumps([written, names, self.tokenizer.chat_template], sort_keys=True)
        self.digest = hashlib.sha256(facts.encode()).hexdigest()
        self.bos_id: int | None = self.tokenizer.bos_token_id
        self.eos_id: int | None = self.tokenizer.eos_token_id
        state = json.loads(written)
        self.control_tokens = _control_tokens(self.tokenizer, state["added_tokens"])
        self.control = _any_of(self.control_tokens)
        self._allowing = _backend(written)
        # Tokens that are matched after Unicode normalisation have more spellings than the one in the pattern.
        shown = set(self.control_tokens)
        normalized = any(token["normalized"] and token["content"] in shown for token in state["added_tokens"])
        self._normalizer = self._allowing.normalizer if normalized else None
        self._state = state
        self.ends: RowEnds = own_ends(self, Path(path))

    @cached_property
    def _aliased(self) -> tuple[Any, dict[int, int], set[int]]:
        """The copy whose control tokens are spelled as aliases, its ids of added tokens -> the real ids, and the real
        ids of control tokens (without the unknown token, which ordinary text has too)."""
        place = {token: index for index, token in enumerate(self.control_tokens)}
        added = []
        for token in self._state["added_tokens"]:
            if token["content"] in place:
                token = {**token, "content": _ALIAS.format(place[token["content"]]), "normalized": False}
            added.append(token)
        backend = _backend(json.dumps({**self._state, "added_tokens": added}, ensure_ascii=False))
        pairs = zip(added, self._state["added_tokens"], strict=True)
        real = {backend.token_to_id(new["content"]): old["id"] for new, old in pairs}
        unknown = self.tokenizer.unk_token_id
        control = {self._allowing.token_to_id(token) for token in self.control_tokens} - {unknown, None}
        return backend, {alias: one for alias, one in real.items() if alias != one}, control

    @cached_property
    def ids_digest(self) -> str:
        """Digest of what gives ids their meaning: vocabulary, merges, splitting and spelling of text, BOS and EOS.

        Ids that exist no longer depend on the chat template, and the folder that a model is exported to may carry another
        one: it is left out. So are padding, truncation and what a tokenizer puts round a text, which are never used here
        and which a tokenizer that has been used and saved again writes down.
        """
        state = {name: part for name, part in self._state.items() if name not in _NO_PART_OF_IDS}
        facts = json.dumps([state, self.bos_id, self.eos_id], sort_keys=True)
        return hashlib.sha256(facts.encode()).hexdigest()

    @cached_property
    def cuts_prompts(self) -> bool:
        """Whether the ids of a prompt's first part (`prompt_cut.cut_of`) are the first ids of whatever begins with it."""
        return can_cut(self._state)

    @cached_property
    def num_ids(self) -> int:
        """One more than the largest id of the vocabulary, added tokens included."""
        found: int = 1 + max(self._allowing.get_vocab(with_added_tokens=True).values())
        return found

    @cached_property
    def added_tokens(self) -> list[str]:
        """Tokens that are read in one piece wherever they stand: control tokens, and words such as <think>."""
        return [token["content"] for token in self._state["added_tokens"]]

    @property
    def has_template(self) -> bool:
        """Whether conversations can be written down."""
        return bool(self.tokenizer.chat_template)

    def id_of(self, token: str) -> int | None:
        """Id of the entry of the vocabulary that is spelled `token`, None where there is none."""
        found: int | None = self._allowing.token_to_id(token)
        return found

    def count_control(self, text: str) -> int:
        """How many control tokens a text spells out."""
        found = sum(1 for _ in self.control.finditer(text))
        if not found and self._normalizer is not None:
            found = sum(1 for _ in self.control.finditer(self._normalizer.normalize_str(text)))
        return found

    def mark(self, value: Any) -> Any:
        """`value` (text, or lists and dicts of it) with control tokens replaced by marks that a template passes on."""
        if isinstance(value, str):
            return self.control.sub(lambda found: _MARK.format(self.control_tokens.index(found.group())), value)
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        return [self.mark(item) for item in value] if isinstance(value, list | tuple) else value

    def from_marked(self, rendered: str) -> str:
        """Text for `encode(..., plain=True)`: control tokens written by the template stay so, marked ones are text."""
        aliased = self.control.sub(lambda found: _ALIAS.format(self.control_tokens.index(found.group())), rendered)
        return _MARKED.sub(lambda found: self.control_tokens[int(found.group(1))], aliased)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; control tokens in a text are control tokens."""
        return [found.ids for found in self._allowing.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_plain(self, text: str, *, num_aliases: int = 0) -> list[int]:
        """Ids of a text in which control tokens are plain, but for `num_aliases` aliases. Raises Unreadable."""
        backend, real, control = self._aliased
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        ids = [real.get(one, one) for one in ids]
        if sum(one in control for one in ids) > num_aliases:
            raise Unreadable("the vocabulary holds a control token as an ordinary piece")
        return ids

    def offsets(self, text: str, *, plain: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text as `encode` or `encode_plain` reads it, and the characters (first, behind the last) of each."""
        backend, real = self._aliased[:2] if plain else (self._allowing, {})
        found = backend.encode(text, add_special_tokens=False)
        return [real.get(one, one) for one in found.ids], found.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, control tokens included."""
        found: str = self._allowing.decode(list(ids), skip_special_tokens=False)
        return found


def holds_private_marks(text: str) -> bool:
    """Whether a text uses the private code points of aliases and marks (no data set does; an attack might)."""
    return _PRIVATE.search(text) is not None


def count_aliases(text: str) -> int:
    """How many aliases of control tokens a text holds."""
    return text.count(_ALIAS[0])


def _fast_tokenizer(path: str) -> Any:
    """A fast tokenizer from a folder (a bare tokenizer.json will do) or hub id. Raises DataError with what to do."""
    from transformers import AutoTokenizer

    bare = Path(path) / "tokenizer.json"
    if bare.is_file() and not (Path(path) / "tokenizer_config.json").exists():
        tokenizer = _read_bare(bare)
        vocabulary = tokenizer.get_vocab()
        tokenizer.eos_token = next((token for token in _BARE_EOS if token in vocabulary), None)
        tokenizer.bos_token = next((token for token in _BARE_BOS if token in vocabulary), None)
        template = Path(path) / "chat_template.jinja"
        if template.is_file():
            tokenizer.chat_template = template.read_text(encoding="utf-8")
        return _usable(tokenizer, path)
    try:
        return _usable(AutoTokenizer.from_pretrained(path, trust_remote_code=False), path)
    except DataError:
        raise
    except BaseException as error:  # files that the libraries take as they are; a panic of theirs is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(
            f"No tokenizer could be read from {path!r}: {(str(error) or repr(error)).splitlines()[0]}. "
            "A folder with tokenizer.json (and, as a rule, tokenizer_config.json) or the id of a hub model is needed; "
            "tokenizers that need code of their own are never run."
        ) from error


def _read_bare(path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # the library raises bare Exceptions for text that it cannot parse
        raise DataError(f"{path} cannot be read: {(str(error) or repr(error)).splitlines()[0][:200]}.") from error


def _usable(tokenizer: Any, path: str) -> Any:
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise DataError(
            f"The tokenizer of {path!r} ({type(tokenizer).__name__}) is not a fast tokenizer: it has no "
            "tokenizer.json. Convert it (save_pretrained of a fast tokenizer writes one) and give that folder as "
            "model.path."
        )
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"The tokenizer of {path!r} has no EOS token, so answers could not be ended and the model would never "
            'learn to stop. Name one in tokenizer_config.json ("eos_token") and give that folder as model.path.'
        )
    return tokenizer


def _backend(written: str) -> Any:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(written)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _control_tokens(tokenizer: Any, added_tokens: Sequence[dict[str, Any]]) -> list[str]:
    """Special tokens, the named ones (BOS, EOS, ...), what the publisher lists, and added tokens like <|this|>.

    Added tokens that models write as words, such as <think> or <tool_call>, are none of these and stay as they are.
    """
    named = {str(token) for token in tokenizer.all_special_tokens}
    named |= set(getattr(tokenizer, "chat_control_tokens", None) or ())
    return [
        token["content"]
        for token in added_tokens
        if token["special"] or token["content"] in named or _SHAPED.fullmatch(token["content"])
    ]


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
