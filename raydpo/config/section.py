"""What every section of the configuration is: frozen, and its problems are sentences.

Comes in: keys and values, in Python or from a file. Goes out: a section, or one ConfigError with all that is wrong.
Decision: only the outermost section words problems; within it pydantic's own errors say where they are. Price: a section is
walked once before pydantic validates it.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from raydpo.config.entry import entry_of
from raydpo.config.section_base import SectionBase, as_pydantic_says, is_inside
from raydpo.config.tree_check import TreeCheck
from raydpo.errors import ConfigError


class Worded(SectionBase):
    """A section that raises ConfigError where pydantic would raise ValidationError."""

    @model_validator(mode="after")
    def _keys_go_together(self, info: ValidationInfo) -> Self:
        found = list(self.clashes())
        if info.context is not None:
            info.context.extend((self, text) for text in found)  # a check collects them
        elif found:
            raise ValueError("; ".join(found))
        return self

    @model_validator(mode="wrap")  # below the other, so that it is asked round it
    @classmethod
    def _in_sentences(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if is_inside() or isinstance(value, cls):
            return handler(value)
        check = TreeCheck(cls, entry_of(value), "")
        if check.walk():
            try:
                with as_pydantic_says():
                    return handler(value)
            except ValidationError:
                pass  # it is asked again, to say all at once
        check.run()
        raise ConfigError([text for _, text in check.problems])


class Section(Worded):
    """Base of sections that are a list of keys: unknown keys refused, docstrings of fields kept as help."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, protected_namespaces=()
    )


def one_or_many(value: Any) -> Any:
    """A list as it is, one text as a list of it."""
    return (value,) if isinstance(value, str) else value


OneOrMany = Annotated[
    tuple[str, ...],
    BeforeValidator(one_or_many),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}),
]
"""Texts; one alone may stand without its list."""
