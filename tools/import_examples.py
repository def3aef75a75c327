"""Every preference-training example of other projects through `raydpo import`: python -m tools.import_examples CHECKOUT ...

In: checkouts (a folder with a work tree, or a bare git directory) of TRL, LLaMA-Factory, Axolotl, ms-swift, OpenRLHF,
NeMo-RL, open-instruct. Out: counts by project and revision as JSON. Each training is imported with a stand-in for model, data,
chat template and run directory, and what comes out is loaded and checked as `raydpo check` does before it reads data.
Nothing of theirs is kept: a bare git directory is written out to a folder that is deleted.
Decision: a training counts as passed when no option was allowed by name. What was allowed to look further is counted beside it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from raydpo.config.sections import Config
from raydpo.config.verb_checks import verb_checks
from raydpo.errors import ConfigError
from raydpo.importing.conversion import ImportWishes, convert
from raydpo.importing.given_options import GivenOption
from raydpo.importing.read_theirs import trainings_in

PLACES = {
    "huggingface/trl": ("trl", ("trl/scripts/*.py", "examples/scripts/*.py", "examples/cli_configs/*.yaml")),
    "hiyouga/LLaMA-Factory": ("llama-factory", ("examples/**/*.yaml",)),
    "axolotl-ai-cloud/axolotl": ("axolotl", ("examples/**/*.y*ml",)),
    "modelscope/ms-swift": ("ms-swift", ("examples/**/*.sh", "examples/**/*.yaml")),
    "OpenRLHF/OpenRLHF": ("openrlhf", ("examples/**/*.sh",)),
    "NVIDIA-NeMo/RL": ("nemo-rl", ("examples/configs/dpo*.yaml", "examples/configs/recipes/**/dpo*.yaml")),
    "allenai/open-instruct": (
        "open-instruct",
        ("scripts/**/*.sh", "configs/**/*dpo*.y*ml", "configs/train_configs/dpo/*.yaml"),
    ),
}
_TYPICAL = {
    "trl": "trl/scripts/dpo.py",
    "llama-factory": "src/llamafactory",
    "axolotl": "src/axolotl",
    "ms-swift": "swift",
    "openrlhf": "openrlhf",
    "nemo-rl": "nemo_rl",
    "open-instruct": "open_instruct",
}
_IMAGES = re.compile(r"(?i)vl[-_/]|[-_/.]vl\b|vlm|VL\d*-|qwen\d*vl|omni|rlaif-v|internvl|multimodal|pixtral|MAX_PIXELS")
_PREFERENCES = {
    "llama-factory": re.compile(r"^stage: *(dpo|kto)\b|^\w*_(dpo|kto)\.ya?ml$", re.M),
    "axolotl": re.compile(r"^rl: *['\"]?(dpo|ipo|kto|orpo|simpo)\b", re.M),
    "trl": re.compile(r"(dpo|kto|orpo|cpo|bco)(_vlm)?\.py|loss_type"),
    "ms-swift": re.compile(r"rlhf_type:? +(dpo|kto|orpo|cpo|simpo)\b"),
    "openrlhf": re.compile(r"train_(dpo|kto)\b"),
    "nemo-rl": re.compile(r"dpo"),
    "open-instruct": re.compile(r"dpo"),
}
_STAND_IN = {
    "model.path": "stand-in-model",
    "data.train": "[stand-in.jsonl]",
    "data.chat_template": "stand-in.jinja",
    "train.learning_rate": "1e-6",
    "train.global_batch_pairs": "32",
    "run.dir": "runs/stand-in",
}
_GIVEN_HERE = ("model.path", "data.train", "data.chat_template", "run.dir")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Import every preference-training example of other projects, and count."
    )
    parser.add_argument("checkouts", nargs="+", metavar="CHECKOUT", help="folder of a checkout, or bare git directory")
    parser.add_argument("--verbose", action="store_true", help="every training with its problems, on stderr")
    args = parser.parse_args()
    found = {}
    for checkout in args.checkouts:
        with tempfile.TemporaryDirectory() as folder:
            root, revision = _work_tree(Path(checkout), Path(folder))
            project = next(name for name, place in _TYPICAL.items() if (root / place).exists())
            found[project] = {"revision": revision, **_count(project, root, args.verbose)}
    keys = ("text", "passed", "passed_with_stand_ins_for_values", "passed_with_allowed", "image")
    found["all"] = {key: sum(each[key] for each in found.values()) for key in keys}
    print(json.dumps(found, indent=2))
    return 0


def _work_tree(checkout: Path, folder: Path) -> tuple[Path, str]:
    """The root of the files, and the commit."""
    git = ["git", "-c", "safe.directory=*", "-C", str(checkout)]
    revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    if (checkout / ".git").exists():
        return checkout, revision
    names = subprocess.run(
        [*git, "ls-tree", "-r", "--name-only", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    wanted = (".yaml", ".yml", ".sh", ".py", ".json", ".conf")
    for name in names.splitlines():
        if name.endswith(wanted):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if _may_be_read(name):
                shown = subprocess.run([*git, "show", f"HEAD:{name}"], capture_output=True, check=False)
                target.write_bytes(shown.stdout)
            else:
                target.touch()
    return folder, revision


def _may_be_read(name: str) -> bool:
    return name.startswith(("examples/", "configs/", "scripts/", "trl/scripts/")) or name.endswith("dataset_info.json")


def _examples(project: str, root: Path) -> Iterator[Path]:
    patterns = next(patterns for name, patterns in PLACES.values() if name == project)
    files = dict.fromkeys(path for pattern in patterns for path in sorted(root.glob(pattern)))
    for path in files:
        text = path.read_text(errors="replace")
        if _PREFERENCES[project].search(f"{path.name}\n{path.parent.name}\n{text}") and "gdpo" not in path.name:
            yield path


def _count(project: str, root: Path, is_verbose: bool) -> dict[str, Any]:
    numbers: Counter[str] = Counter()
    stopped: Counter[str] = Counter()
    for path in _examples(project, root):
        for number, words in _trainings(path):
            if _IMAGES.search(f"{path.relative_to(root)} {words}"):
                numbers["image"] += 1
                continue
            numbers["text"] += 1
            ended, stops = _try(project, path, number)
            numbers[ended] += 1
            stopped.update(stops)
            if is_verbose:
                print(f"{project} {path.relative_to(root)} {number}: {ended} {sorted(stops)}", file=sys.stderr)
    passed = numbers["passed"]
    with_values = passed + numbers["with values"]
    return {
        "text": numbers["text"],
        "passed": passed,
        "passed_with_stand_ins_for_values": with_values,
        "passed_with_allowed": with_values + numbers["with allowed"],
        "image": numbers["image"],
        "failed": numbers["failed"],
        "stopped_by": dict(stopped.most_common()),
    }


def _trainings(path: Path) -> list[tuple[int, str]]:
    """Number and words of every training in a file; one whose options are in another file is counted there."""
    try:
        found = trainings_in(str(path), {})
    except ConfigError:
        return []
    found = [given for given in found if not isinstance(given.options.get("config"), GivenOption)]
    return [
        (at, " ".join(str(option.value) for option in given.options.values()))
        for at, given in enumerate(found, start=1)
    ]


def _try(project: str, path: Path, number: int) -> tuple[str, list[str]]:
    """How an import ended, and the options that stopped it without stand-ins for values and without anything allowed."""
    here = [f"{key}={_STAND_IN[key]}" for key in _GIVEN_HERE]
    values = [f"{key}={value}" for key, value in _STAND_IN.items()]
    stops: list[str] = []
    for name, overrides in (("passed", here), ("with values", values)):
        problems = _problems(path, ImportWishes(project, command=number, overrides=overrides))
        if not problems:
            return name, stops
        stops = _options(problems)
    allowed = list(dict.fromkeys(stops))
    problems = _problems(path, ImportWishes(project, command=number, overrides=values, allowed=allowed))
    return ("with allowed" if not problems else "failed"), (
        stops if not problems else [*stops, *_first_words(problems)]
    )


def _problems(path: Path, wishes: ImportWishes) -> list[str]:
    """What stands in the way of a run: the import's problems, or those of `raydpo check` on what comes out."""
    try:
        text = convert(str(path), wishes).text
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            config = Config.load(file.name)
        assert yaml.safe_load(text)
        return verb_checks(config, "check")
    except ConfigError as error:
        return list(error.problems)


def _options(problems: list[str]) -> list[str]:
    """Names that the problems offer to allow."""
    return [found[1] for problem in problems if (found := re.search(r"`--allow ([\w.]+)`", problem))]


def _first_words(problems: list[str]) -> list[str]:
    return [problem.partition(": ")[2][:80] for problem in problems if "--allow" not in problem]


if __name__ == "__main__":
    sys.exit(main())
