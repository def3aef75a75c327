"""How actors are spread over nodes, as a sentence: which ranks share a machine decides how fast they can talk.

Comes in: the places of actors in the order of their numbers. Goes out: text. Decision: numbers that follow each other are one
range, so that the line stays short for hundreds of ranks that were packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from raydpo.runtime.place import Place


def spread_of(places: Sequence[Place]) -> str:
    """ "4 on 2 nodes: 0-1 on 10.0.0.1, 2-3 on 10.0.0.2"."""
    runs = [
        (node, [number for number, _ in group])
        for node, group in groupby(enumerate(places), key=lambda item: item[1].node_id)
    ]
    hosts = {place.node_id: place.host for place in places}
    where = ", ".join(f"{_range(numbers)} on {hosts[node]}" for node, numbers in runs)
    return f"{len(places)} on {len(hosts)} {'node' if len(hosts) == 1 else 'nodes'}: {where}"


def _range(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
