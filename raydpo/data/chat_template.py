"""The chat template of a tokenizer, applied to messages.

What comes in: messages, tools and the template's own settings. What goes out: text, or BadRow where the template refuses.
Decision: the date that some templates write is fixed, since otherwise the same data would be other data tomorrow and
every cached reference value would be lost. Price: models are trained on that one date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raydpo.config.sections import OURS
from raydpo.data.bad_rows import BadRow, text
from raydpo.data.messages import Message, Row
from raydpo.data.render_watch import MOST_CPU_S, MOST_GROWTH_BYTES, Overtime, within_bounds
from raydpo.data.template_bounds import TooMuch, bound_templates, make_room
from raydpo.data.tokenizer import TextTokenizer
from raydpo.errors import DataError

# What templates call for today's date, with an answer that stays: 26 July 2024, the date that Llama templates name.
_DATE_PARTS = {"%Y": "2024", "%m": "07", "%d": "26", "%b": "Jul", "%B": "July", "%A": "Friday", "%a": "Fri", "%y": "24"}
_FIXED_DATE = (
    "{%- macro strftime_now(layout) -%}{{ layout"
    + "".join(f" | replace('{part}', '{value}')" for part, value in _DATE_PARTS.items())
    + " }}{%- endmacro %}"
)


MOST_BEYOND = 2
"""Rows at which a template may take too much before it is the template that is at fault."""

SETTINGS = "chat_template_kwargs"
"""Column of a row with settings of its own."""


@dataclass(frozen=True)
class Template:
    """The template of `tokenizer` as one row uses it.

    tools: descriptions of tools.
    settings: variables of the template (`enable_thinking`), of the run and of the row.
    """

    tokenizer: TextTokenizer
    tools: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The text of the template. BadRow when there is none for these tools."""
        try:
            found: str = self.tokenizer.tokenizer.get_chat_template(tools=self.tools)
        except ValueError as error:
            raise BadRow("template_error", str(error).splitlines()[0][:200]) from error
        return found

    def write(self, turns: Sequence[Message], *, generation: bool = False, continued: bool = False) -> str:
        """Text of `turns`. generation: and the beginning of an answer. continued: the last turn is left open. BadRow."""
        from jinja2 import TemplateError

        bound_templates()
        template = self.source
        if "strftime_now" in template:
            template = _FIXED_DATE + template
        make_room([list(turns), self.tools])
        try:
            written = within_bounds(
                lambda: self.tokenizer.tokenizer.apply_chat_template(
                    list(turns),
                    tools=self.tools,
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=generation,
                    continue_final_message=continued,
                    **self.settings,
                )
            )
        except (Overtime, TooMuch, RecursionError, MemoryError) as error:
            raise self._beyond(error) from error
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise BadRow("template_error", (str(error) or repr(error)).splitlines()[0][:200]) from error
        assert isinstance(written, str)
        return written

    def _beyond(self, error: BaseException) -> BadRow:
        """The reason of a row at which the template took too much. Raises DataError when that is the template's way."""
        bad = BadRow("template_limits", _what_it_took(error))
        self.tokenizer.num_beyond += 1
        if self.tokenizer.num_beyond > MOST_BEYOND:
            raise beyond_bounds(self.tokenizer, bad)
        return bad


def beyond_bounds(tokenizer: TextTokenizer, bad: BadRow) -> DataError:
    """The error for a template that takes too much whatever it is given."""
    return DataError(
        f"The chat template of {tokenizer.path!r} {bad.detail}; templates of honest models take milliseconds, and nothing "
        "goes on with this one. Set data.chat_template to the path of a Jinja file that you trust."
    )


def _what_it_took(error: BaseException) -> str:
    if isinstance(error, Overtime):
        return f"took more than {MOST_CPU_S:g} CPU seconds or {MOST_GROWTH_BYTES:,} bytes for one conversation and was ended"
    if isinstance(error, RecursionError):
        return "calls itself, or is nested, without an end"
    return f"asks for more than it may: {str(error) or 'memory'}"


def template_settings(row: Row, of_run: Mapping[str, Any]) -> Mapping[str, Any]:
    """`data.chat_template_kwargs` with what the row says under chat_template_kwargs, which wins. BadRow."""
    own = row.get(SETTINGS)
    if isinstance(own, str) and own.strip():
        try:
            own = json.loads(text(own, SETTINGS))
        except (ValueError, RecursionError) as error:
            raise BadRow("malformed_json", f"{SETTINGS}: {error}") from error
    if not own:
        return of_run
    if not isinstance(own, Mapping):
        raise BadRow("not_a_string", f"{SETTINGS} is {type(own).__name__}, not an object")
    if taken := sorted(OURS & own.keys()):
        raise BadRow("template_error", f"{SETTINGS} names {', '.join(taken)}, which the program sets itself")
    return {**of_run, **own}
