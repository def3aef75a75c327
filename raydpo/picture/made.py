"""`pictures.js`: the code of every picture, made from the objectives by `python -m raydpo.picture.made`.

Decision: it lies in the package as text that a test compares with what is made anew, so a page needs neither torch nor time.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from raydpo.picture.controls import Picture, pictures
from raydpo.picture.javascript import RUNTIME, function_of

PATH = Path(__file__).with_name("pictures.js")


def source() -> str:
    """JavaScript that defines `ALL`: of each picture its name, title, variant, sliders, and `code`, a function of them."""
    return f"{RUNTIME}\nconst ALL = [\n" + "".join(f"{_literal(each)},\n" for each in pictures()) + "];\n"


def _literal(picture: Picture) -> str:
    answers = {name.removeprefix("d_") for name in picture.graph.results}
    sliders = [
        {key.removeprefix("is_"): value for key, value in asdict(slider).items()} | {"answer": slider.name in answers}
        for slider in picture.sliders
    ]
    said = {"name": picture.name, "title": picture.title, "variant": picture.variant, "sliders": sliders}
    return f"{{...{json.dumps(said)},\n code: {function_of(picture.graph)}}}"


if __name__ == "__main__":
    PATH.write_text(source(), encoding="utf-8")
