"""The page with the picture of every objective, and the same for some of them.

Comes in: `pictures.js`, which `raydpo.picture.made` writes, so that a page is made without torch. Goes out: one HTML file that
asks the network for nothing. `raydpo objectives --html > docs/explorer.html` writes the page of all; a test compares.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.resources import files


def page(names: Collection[str] = ()) -> str:
    """HTML of the pictures of objectives `names`, or of all. Names that are none of ours are left out."""
    here = files("raydpo.picture")
    template = here.joinpath("page.html").read_text(encoding="utf-8")
    made = here.joinpath("pictures.js").read_text(encoding="utf-8")
    chosen = f"const PICTURES = ALL.filter((each) => {_list(names)}.includes(each.name));" if names else ""
    return template.replace("/*PICTURES*/", made + (chosen or "const PICTURES = ALL;"))


def _list(names: Collection[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in sorted(names) if name.isidentifier()) + "]"
