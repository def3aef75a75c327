"""Which mutants are tried: a seeded sample, spread over files by their lines and over the lines of each.

Decision: quotas by lines, not by mutants, so that one dense formula does not crowd out the rest of a file; inside a file
no line has two mutants in the sample before every line that can have one has one.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from tools.mutate.mutants import Mutant


def sample(mutants: Mapping[str, Sequence[Mutant]], num_lines: Mapping[str, int], num: int, seed: int) -> list[Mutant]:
    """`num` mutants, or all there are. mutants, num_lines: by path. In the order of files and places."""
    quotas = _quotas({path: len(found) for path, found in mutants.items()}, num_lines, num)
    chosen = [
        mutant for path, found in sorted(mutants.items()) for mutant in _spread(found, quotas[path], f"{seed} {path}")
    ]
    return sorted(chosen, key=lambda mutant: (mutant.path, mutant.start, mutant.stop, mutant.text))


def _quotas(available: Mapping[str, int], num_lines: Mapping[str, int], num: int) -> dict[str, int]:
    """One at a time to the file that is furthest behind its share of lines."""
    quotas = dict.fromkeys(available, 0)
    for _ in range(min(num, sum(available.values()))):
        open_paths = [path for path in sorted(available) if quotas[path] < available[path]]
        behind = max(open_paths, key=lambda path: num_lines[path] / (quotas[path] + 0.5))
        quotas[behind] += 1
    return quotas


def _spread(mutants: Sequence[Mutant], num: int, seed: str) -> list[Mutant]:
    draw = random.Random(seed)
    by_line: dict[int, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        by_line[mutant.line].append(mutant)
    lines = list(by_line.values())
    for line in lines:
        draw.shuffle(line)
    draw.shuffle(lines)
    chosen: list[Mutant] = []
    while len(chosen) < num:
        chosen += [line.pop() for line in lines if line][: num - len(chosen)]
    return chosen
