"""The base of every section of a suite file, and the sentences that bad values are answered with."""

from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError, PydanticKnownError

from core.errors import ConfigError

Loc = tuple[int | str, ...]


class Section(BaseModel):
    """A frozen, closed set of fields: an unknown one is an error, not a silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _fits_int64(cls, value: Any) -> Any:
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, int) and number >= 2**63 for number in numbers):
            raise PydanticKnownError("less_than", {"lt": 2**63})
        return value


def impossible(sentence: str) -> PydanticCustomError:
    """An error that is already a whole sentence: field (as the section that raises it names it), value, expectation, remedy."""
    return PydanticCustomError("sentence", "{sentence}", {"sentence": sentence})


def config_error(model: type[Section], error: ValidationError) -> ConfigError:
    """All that is wrong with a suite file, a sentence a line."""
    details = error.errors()
    # A field that is misspelt is also missing; one sentence is enough.
    misspelt = {_meant(model, detail["loc"]) for detail in details if detail["type"] == "extra_forbidden"}
    return ConfigError("\n".join(_sentence(model, detail) for detail in details if detail["type"] != "missing" or detail["loc"] not in misspelt))


def _sentence(model: type[Section], detail: ErrorDetails) -> str:
    loc, problem = detail["loc"], detail["type"]
    field, value, (section, info) = _spell_field(loc), spell(detail["input"]), _lookup(model, loc)
    if problem == "sentence":
        sentence = str(detail["ctx"]["sentence"])
        return f"{field}.{sentence}" if field else sentence
    if problem == "extra_forbidden":
        meant = _meant(model, loc)
        remedy = f"did you mean {meant[-1]}?" if meant else "remove it"
        return f"{field} is {value}; expected one of the fields {', '.join(section.model_fields)}; {remedy}"
    inner = _section_in(info.annotation) if info is not None else None
    example = info.examples[0] if info is not None and info.examples else None
    if isinstance(example, list) and isinstance(loc[-1], int):
        example = example[0]
    if example is not None:
        remedy = f"write for example {spell(example)}"
    else:
        remedy = f"write them indented below {loc[-1]}:" + ("" if info is None or info.is_required() else ", or remove it")
    fields = f"a section with the fields {', '.join(inner.model_fields)}" if inner is not None else "a value"
    if problem == "missing":
        return f"{field} is missing; expected {fields if example is None else 'a value'}; {remedy}"
    expected = EXPECTATIONS.get(problem, "{message}").format(**detail.get("ctx", {}), fields=fields, message=detail["msg"])
    return f"{field} is {value}; expected {expected}; {remedy}"


EXPECTATIONS = {
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "literal_error": "{expected}",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "layers": "a list of layers such as [5, 9, 12], a range such as 5-12, or all",
    "bytes": "a number of bytes such as 200GB",
    "model_type": "{fields}",
    "too_short": "at least {min_length} entry",
    "string_too_short": "some text",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "letters, digits, dots, dashes and underscores, beginning with a letter or digit",
}


def _meant(model: type[Section], loc: Loc) -> Loc | None:
    """The field that an unknown one at `loc` was probably meant to be."""
    section, _ = _lookup(model, loc)
    close = get_close_matches(str(loc[-1]), section.model_fields, n=1)
    return (*loc[:-1], close[0]) if close else None


def _lookup(model: type[Section], loc: Loc) -> tuple[type[Section], Any]:
    """The section that holds the field at `loc`, and the field's declaration."""
    section, info = model, None
    for part in loc:
        if isinstance(part, str):
            section = (_section_in(info.annotation) if info is not None else None) or section
            info = section.model_fields.get(part)
    return section, info


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if found := _section_in(part):
            return found
    return None


def _spell_field(loc: Loc) -> str:
    """The field as a path in the file, `dictionaries[0].widths`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{spell_name(part)}" for part in loc)
    return "".join(parts).removeprefix(".")


def spell_name(name: str) -> str:
    """A field's name as it is, or quoted and cut where it would break the sentence."""
    return name if name.isprintable() and 0 < len(name) <= 60 else _cut(repr(name))


def spell(value: Any) -> str:
    """A value much as the file spells it, cut to fit a sentence."""
    return _cut(_spell(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _spell(value: Any) -> str:
    match value:
        case None | "":
            return "empty"
        case list():
            return f"[{', '.join(map(_spell, value[:9]))}]"
        case dict():
            return f"{{{', '.join(f'{spell_name(str(key))}: {_spell(inner)}' for key, inner in value.items())}}}"
        case int() if abs(value) >= 10_000 and not isinstance(value, bool):
            return f"{value:_}" if abs(value) < 10**60 else f"a number of {len(str(value))} digits"
        case bool():
            return str(value).lower()
        case float():
            return repr(value).removesuffix(".0")
    return repr(value)
