"""An import contract of our own: a package may import what is listed, and nothing else, the standard library included.

import-linter's own `forbidden` names what must not be imported; a room that is order and nothing else is kept clean by the
list of what it may use, because what a newcomer adds is never on a list of forbidden things.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

Found = tuple[str, str, int]
"""Importer, what it imports, line."""


class OnlyContract(Contract):
    """`source_modules` and all below them may import `allowed_modules` (with all below), themselves and `__future__`.

    lazy_names: what their `__init__` may import as well, to look names up when they are first used.
    """

    type_name = "only"

    source_modules = fields.ListField(subfield=fields.StringField())
    allowed_modules = fields.ListField(subfield=fields.StringField())
    lazy_names = fields.ListField(subfield=fields.StringField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        found = list(self._found(graph))
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported, line in check.metadata["found"]:
            output.print_error(f"{importer} imports {imported} (line {line})", bold=False)
        output.print_error(f"Allowed: {', '.join(_names(self.allowed_modules))}.", bold=False)

    def _found(self, graph: ImportGraph) -> Iterator[Found]:
        sources, allowed, lazy = (_names(each) for each in (self.source_modules, self.allowed_modules, self.lazy_names))
        allowed.append("__future__")
        for source in sources:
            for importer in sorted({source, *graph.find_descendants(source)}):
                extra = lazy if importer in sources else []
                for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                    if not any(_is_within(imported, room) for room in (*sources, *allowed, *extra)):
                        details = graph.get_import_details(importer=importer, imported=imported)
                        yield importer, imported, int(details[0]["line_number"]) if details else 0


def _names(field: Any) -> list[str]:
    """What the contract was given; nothing where it was given nothing."""
    return list(field or ())


def _is_within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")
