"""A command of a script as options: the launcher, the program and what is handed to it.

Comes in: words of a shell command. Goes out: `GivenOptions`, or None where no program of a preference training is among them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from raydpo.importing.given_options import GivenOption, GivenOptions, Unresolved, option_name
from raydpo.importing.plain_yaml import PlainLoader
from raydpo.importing.shell_words import ShellCommand

_SCRIPTS = re.compile(
    r"(?:.*[/.])?(?:dpo|kto|orpo|cpo|bco|dpo_vlm|mpo_vlm|dpo_tune_cache|train_dpo|train_kto|rlhf)(?:\.py)?\Z"
)
_TWO_WORDS = {
    ("swift", "rlhf"),
    ("megatron", "rlhf"),
    ("trl", "dpo"),
    ("trl", "kto"),
    ("axolotl", "train"),
    ("llamafactory-cli", "train"),
    ("llamafactory_cli", "train"),
}
_PER_NODE = ("nproc_per_node", "num_gpus")
_NODES = ("nnodes", "num_nodes", "num_machines")
_TRUE_NAMES = {"true": True, "false": False, "none": None, "null": None}


def read_command(command: ShellCommand, name: str) -> GivenOptions | None:
    """The options of a command of the file `name`."""
    words = [word for word in command.words if word not in ("(", ")")]
    begin = _program_end(words)
    if begin is None:
        return None
    where = f"{name}:{command.line}"
    launcher = _pairs(words[:begin], where)
    program = " ".join(words[:begin][-2:])
    positional, rest = _leading(words[begin:])
    options = _pairs(rest, where)
    if positional:
        options["config"] = GivenOption("config", positional[0], where)
    plain = {key: str(_first(option.value)) for key, option in launcher.items()}
    return GivenOptions(options, where, program, _processes(command, plain, words[:begin]), plain)


def _first(value: Any) -> Any:
    """Of several words behind an option of a launcher the first is its own."""
    return value[0] if isinstance(value, list) else value


def _program_end(words: Sequence[str]) -> int | None:
    """How many words there are up to the program and with it."""
    if words and re.fullmatch(r"(?:openrlhf\.cli\.)?train_(?:dpo|kto)", words[0].rpartition("/")[2]):
        return 1
    for place, word in enumerate(words):
        if place + 1 < len(words) and (word.rpartition("/")[2], words[place + 1]) in _TWO_WORDS:
            return place + 2
        is_script = word.endswith(".py") or (place > 0 and words[place - 1] in ("-m", "--module"))
        if is_script and _SCRIPTS.match(word):
            return place + 1
    return None


def _leading(words: Sequence[str]) -> tuple[list[str], list[str]]:
    place = next((at for at, word in enumerate(words) if word.startswith("--")), len(words))
    return list(words[:place]), list(words[place:])


def _pairs(words: Sequence[str], where: str) -> dict[str, GivenOption]:
    """`--name value value`, `--name=value` and `--name` alone."""
    found: dict[str, GivenOption] = {}
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        if not word.startswith("--") or word == "--":
            continue
        name, equals, first = word.partition("=")
        values = [first] if equals else []
        while not equals and place < len(words) and not words[place].startswith("--"):
            values.append(words[place])
            place += 1
        key = option_name(name)
        found[key] = GivenOption(key, value_of(values), where)
    return found


def value_of(words: Sequence[str]) -> Any:
    """No word is true, one a value, more a list."""
    if not words:
        return True
    return _scalar(words[0]) if len(words) == 1 else [_scalar(word.rstrip(",")) for word in words]


def _scalar(word: str) -> Any:
    if isinstance(word, Unresolved):
        return word
    if word.lower() in _TRUE_NAMES:
        return _TRUE_NAMES[word.lower()]
    if re.match(r"[-+.\d\[{]", word):
        try:
            return yaml.load(word, Loader=PlainLoader)
        except yaml.YAMLError:
            return word
    return word


def _processes(command: ShellCommand, launcher: dict[str, str], words: Sequence[str]) -> int | None:
    """Processes of all nodes: what accelerate, torchrun or the environment say."""

    def number(*names: str) -> int | None:
        texts = [launcher[name] for name in names if name in launcher]
        return int(texts[0]) if texts and texts[0].isdecimal() else None

    nodes = number(*_NODES) or 1
    if any("mason.py" in word for word in words):  # it multiplies what accelerate is told by its nodes
        nodes = number("num_nodes") or 1
        if (total := number("num_processes")) is not None:
            return total * nodes
    if (total := number("num_processes")) is not None:
        return total
    if (per_node := number(*_PER_NODE)) is not None:
        return per_node * nodes
    text = command.variables.get("NPROC_PER_NODE", "")
    if text.isdecimal():
        all_nodes = command.variables.get("NNODES", "1")
        return int(text) * (int(all_nodes) if all_nodes.isdecimal() else 1)
    return 1 if words and words[0] in ("swift", "megatron") else None
