"""The base of every section of a suite file, and the sentences that bad values are answered with."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from core.errors import ConfigError


class Section(BaseModel):
    """A frozen, closed set of fields: an unknown one is an error, not a silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def impossible(sentence: str) -> PydanticCustomError:
    """An error that is already a whole sentence: field, value, expectation, remedy."""
    return PydanticCustomError("sentence", "{sentence}", {"sentence": sentence})


def config_error(model: type[Section], error: ValidationError) -> ConfigError:
    """All that is wrong with a suite file, a sentence a line."""
    # A value that fits no member of a union fails once a member; the first says enough.
    seen: dict[str, str] = {}
    for detail in error.errors():
        seen.setdefault(_field(detail), _sentence(model, detail))
    return ConfigError("\n".join(seen.values()))


def _field(detail: ErrorDetails) -> str:
    """The field as the file spells it, `dictionaries[0].widths`, without pydantic's names for members of a union."""
    name = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in ("int", "str", "float", "list", "constrained-str"):
            name += f".{part}"
    return name.lstrip(".") or "the suite file"


def _sentence(model: type[Section], detail: ErrorDetails) -> str:
    if detail["type"] == "sentence":
        return str(detail["ctx"]["sentence"])
    field, section, info = _field(detail), *_lookup(model, detail["loc"])
    if detail["type"] == "extra_forbidden":
        name = str(detail["loc"][-1])
        close = get_close_matches(name, section.model_fields, n=1)
        known = ", ".join(section.model_fields)
        remedy = f"did you mean {close[0]}?" if close else "remove it"
        return f"{field} is {_short(detail['input'])}; expected one of the fields {known}; {remedy}"
    example = info.examples[0] if info is not None and info.examples else None
    remedy = f"write for example {_spell(example)}" if example is not None else "correct it in the suite file"
    if detail["type"] == "missing":
        return f"{field} is missing; expected a value; {remedy}"
    expectation = EXPECTATIONS.get(detail["type"])
    expected = expectation(detail.get("ctx", {})) if expectation else detail["msg"].lower()
    return f"{field} is {_short(detail['input'])}; expected {expected}; {remedy}"


EXPECTATIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than": lambda c: f"a number greater than {c['gt']:g}",
    "greater_than_equal": lambda c: f"a number of at least {c['ge']:g}",
    "less_than": lambda c: f"a number below {c['lt']:g}",
    "less_than_equal": lambda c: f"a number of at most {c['le']:g}",
    "literal_error": lambda c: f"one of {c['expected']}",
    "int_parsing": lambda c: "a whole number",
    "int_type": lambda c: "a whole number",
    "int_from_float": lambda c: "a whole number",
    "float_parsing": lambda c: "a number",
    "float_type": lambda c: "a number",
    "finite_number": lambda c: "a finite number",
    "string_type": lambda c: "text",
    "list_type": lambda c: "a list",
    "tuple_type": lambda c: "a list",
    "model_type": lambda c: "a section with fields of its own",
    "too_short": lambda c: f"at least {c['min_length']} entry",
    "string_too_short": lambda c: "some text",
    "string_pattern_mismatch": lambda c: f"text that matches {c['pattern']}",
}


def _lookup(model: type[Section], loc: tuple[int | str, ...]) -> tuple[type[Section], Any]:
    """The section that holds the field at `loc`, and the field's declaration."""
    section, info = model, None
    for part in loc:
        if not isinstance(part, str) or part not in section.model_fields:
            continue
        info = section.model_fields[part]
        inner = _section_in(info.annotation)
        if inner is not None and part != loc[-1]:
            section = inner
    return section, info


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if found := _section_in(part):
            return found
    return None


def _short(value: Any) -> str:
    text = _spell(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _spell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "empty"}[value]
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else repr(value)
