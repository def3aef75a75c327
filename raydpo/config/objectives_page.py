"""The table of objectives as text: lines for the screen, and the page docs/objectives.md.

In: the table. Out: text. Here and not in `screen`, whose imports the verb can do without.
`raydpo objectives --markdown > docs/objectives.md` writes the page anew; a test compares.
"""

from __future__ import annotations

from raydpo.config.objective_row import ObjectiveRow
from raydpo.config.objectives import OBJECTIVES

_INTRO = """# Objectives

Made by `raydpo objectives --markdown` from `raydpo/config/objectives.py`. Equations, and where they differ from the
papers, are in `raydpo/objectives/<name>.py` (`cdpo` is in `dpo.py`).

```yaml
objective: {name: simpo, beta: 2.5, gamma_beta_ratio: 0.3}
```

A parameter that the objective does not read is an error. An objective without a reference runs with no reference stage:
`raydpo precompute` has nothing to do.

`reads`: the sums of an answer's token log-probs, also its length (losses on means), or every token. Rewards
(`rewards/*`) are beta x log-ratio of the answer, of its mean token for those that read lengths; without a reference
they are beta (1 for `orpo` and `slic`) x log-prob, likewise. `log_ratios/margins`, in nats, is the same for every
objective with a reference. `clamped` is the share of answers that met a clamp (`fdpo_forward_kl`, `fdpo_alpha`,
`alphapo`, `orpo`).
"""

_OUTRO = """
## Not there

Unpaired objectives (kto, bco, apo_zero_unpaired), batch-level ones (aot), moving references (TR-DPO), weights and sums
of objectives (WPO, LD-DPO, MPO).
"""


def table() -> list[str]:
    """Lines for the screen: name, whether it needs a reference, what it reads, paper, parameters with defaults."""
    cells = [("objective", "reference", "reads", "arXiv", "parameters")]
    for row in OBJECTIVES.values():
        parameters = " ".join(f"{key}={parameter.default:g}" for key, parameter in row.parameters.items())
        cells.append((row.name, "yes" if row.needs_reference else "no", row.reads, row.paper or "-", parameters or "-"))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def page() -> str:
    """The whole page."""
    rows = list(OBJECTIVES.values())
    parts = [_INTRO]
    for title, wanted in (("With a reference", True), ("Without a reference", False)):
        parts += [f"\n## {title}\n\n", *_table([row for row in rows if row.needs_reference == wanted])]
    return "".join([*parts, _OUTRO])


def _table(rows: list[ObjectiveRow]) -> list[str]:
    lines = ["| Name | Objective | Paper | Reads | Parameters: default, allowed |\n", "|---|---|---|---|---|\n"]
    for row in rows:
        paper = f"[{row.paper}](https://arxiv.org/abs/{row.paper})" if row.paper else ""
        parameters = "<br>".join(
            f"`{key}` {parameter.default:g}, {parameter.bounds().removeprefix('allowed: ')}: {parameter.help}"
            for key, parameter in row.parameters.items()
        )
        lines.append(
            f"| `{row.name}` | {row.title}: {row.reading} | {paper} | {row.reads} | {parameters or 'none'} |\n"
        )
    return lines
