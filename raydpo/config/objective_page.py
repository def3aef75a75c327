"""The table of objectives as text: lines for the screen, and the page docs/objectives.md.

In: the table. Out: text. Here and not in `screen`, whose imports the verb can do without.
`raydpo objectives --markdown > docs/objectives.md` writes the page anew; a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raydpo.config.modifier_table import MODIFIERS
from raydpo.config.objective_row import Flag, ObjectiveRow, Parameter
from raydpo.config.objective_table import OBJECTIVES

_INTRO = """# Objectives

Made by `raydpo objectives --markdown` from `raydpo/config/objective_table.py`. Equations, and where they differ from the
papers, are in `raydpo/objectives/<name>.py` (`cdpo` is in `dpo.py`, `aot_unpaired` in `aot.py`).

```yaml
objective: {name: simpo, beta: 2.5, gamma_beta_ratio: 0.3}
```

An option that the objective does not read is an error. An objective without a reference runs with no reference stage:
`raydpo precompute` has nothing to do.

`reads`: the sums of an answer's token log-probs, also its length (losses on means), or every token. Rewards
(`rewards/*`) are beta x log-ratio of the answer, of its mean token for those that read lengths; without a reference
they are beta (1 for `orpo` and `slic`) x log-prob, likewise; with `length_normalized` or `ld_alpha` they are beta x the
log-ratio that the loss then reads. `log_ratios/*`, in nats, mean the same for every
objective with a reference: compare runs by them. `clamped` is the share of answers that met a clamp
(`fdpo_forward_kl`, `fdpo_alpha`, `alphapo`, `orpo`).
"""

_SECTIONS: tuple[tuple[str, str, Callable[[ObjectiveRow], bool]], ...] = (
    (
        "Pairs, with a reference",
        "Rows of prompt, chosen and rejected. `aot` and `aot_unpaired` look at the whole global batch before the loss, in a "
        "pass without gradient over its answers: one more forward.",
        lambda row: row.data == "pairs" and row.needs_reference,
    ),
    (
        "Single answers with labels",
        "Rows of prompt, completion and label (true: desirable). Pairs are read as two such rows with `data.unpair: true`. "
        "`kto` and `bco` look at the whole global batch before the loss: `bco` at its answers, `kto` at each prompt with the "
        "answer to another prompt, rows that are a fixed function of the data set and cached like all others.",
        lambda row: row.data == "labels",
    ),
    ("Without a reference", "", lambda row: row.data == "pairs" and not row.needs_reference),
    (
        "Likelihood",
        "Alone on single answers, or as a second term with an objective on pairs; then they read the chosen answer.",
        lambda row: row.data == "answers",
    ),
)

_OUTRO = """
## Sums of objectives

`plus` adds terms, each with its own `weight` and options. Each is divided by its own count (examples, or tokens for `sft`);
metrics are those of the first term, `loss/<name>` is each term's own loss. MPO
([2411.10442](https://arxiv.org/abs/2411.10442)) and the loss of iterative RPO
([2404.19733](https://arxiv.org/abs/2404.19733)) are such sums:

```yaml
objective: {name: dpo, weight: 0.8, plus: [{name: bco_pair, weight: 0.2}, {name: sft, weight: 1.0}]}
objective: {name: dpo, plus: [{name: nll, weight: 1.0}]}
```

## Modifiers

Options of any objective (or term) that reads them:

"""

_LAST = """
`data.weight_column` names a column of weights; it works with every objective. The loss of an example is multiplied by
its weight, the denominator stays the number of examples (or tokens), so an example of weight 0 teaches nothing of its
own; what `kto`, `bco`, `aot` and `aot_unpaired` see of the whole batch counts it like any other.

With `reference.sync_every` the reference follows the policy (TR-DPO, [2404.09656](https://arxiv.org/abs/2404.09656)): every
so many steps it becomes `reference.sync_alpha` x policy + the rest of itself, its log-probs go to a cache of their own,
and `rewards/*` are measured from it.
"""


def table(rows: Sequence[ObjectiveRow] = tuple(OBJECTIVES.values())) -> list[str]:
    """Lines for the screen: name, what data it needs, whether a reference, what it reads, parameters, defaults."""
    cells = [("objective", "data", "reference", "reads", "parameters")]
    for row in rows:
        parameters = " ".join(f"{key}={parameter.shown()}" for key, parameter in row.parameters.items())
        reference = "yes" if row.needs_reference else "no"
        cells.append((row.name, row.data, reference, row.reads, parameters or "-"))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def notes() -> list[str]:
    """Lines under the table on the screen."""
    looking = ", ".join(row.name for row in OBJECTIVES.values() if row.batch != "none")
    options = " ".join(f"{name}={modifier.value.shown()}" for name, modifier in MODIFIERS.items())
    return [
        "",
        f"Look at the whole global batch before the loss, in one more forward: {looking}.",
        f"Modifiers: {options}.",
        "plus=[...] adds terms. What each option means: raydpo objectives --markdown.",
    ]


def page() -> str:
    """The whole page."""
    parts = [_INTRO]
    for title, text, belongs in _SECTIONS:
        rows = [row for row in OBJECTIVES.values() if belongs(row)]
        parts += [f"\n## {title}\n\n", f"{text}\n\n" if text else "", *_table(rows)]
    return "".join([*parts, _OUTRO, *_modifiers(), _LAST])


def _modifiers() -> list[str]:
    lines = ["| Option | Read by | Paper | Default, allowed |\n", "|---|---|---|---|\n"]
    for name, modifier in MODIFIERS.items():
        lines.append(f"| `{name}` | {modifier.readers} | {_link(modifier.paper)} | {_option(modifier.value)} |\n")
    return lines


def _table(rows: list[ObjectiveRow]) -> list[str]:
    lines = ["| Name | Objective | Paper | Reads | Parameters: default, allowed |\n", "|---|---|---|---|---|\n"]
    for row in rows:
        parameters = "<br>".join(f"`{key}` {_option(parameter)}" for key, parameter in row.parameters.items())
        title = f"{row.title}: {row.reading}"
        lines.append(f"| `{row.name}` | {title} | {_link(row.paper)} | {row.reads} | {parameters or 'none'} |\n")
    return lines


def _link(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper})" if paper else ""


def _option(value: Parameter | Flag) -> str:
    allowed = f", {value.bounds().removeprefix('allowed: ')}" if isinstance(value, Parameter) else ""
    return f"{value.shown()}{allowed}: {value.help}"
