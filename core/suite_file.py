"""Reading a suite file: YAML as people mean it, and `--set`."""

import re
from typing import Any

import yaml
from pydantic import ValidationError

from core.errors import ConfigError
from core.section import config_error, spell, spell_name
from core.suite import Suite


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `7e-5` is a number, `no` and `2024-01-01` are text, a repeated field is an error.

    YAML 1.1 reads these four otherwise. Tags and aliases are not read at all.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.tag:
            what = (
                f"the alias *{event.anchor}" if isinstance(event, yaml.AliasEvent) else f"the tag {event.tag.replace('tag:yaml.org,2002:', '!!')!r}"
            )
            raise yaml.composer.ComposerError(None, None, f"{what} is not read", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a field whose name is not text", key.start_mark)
            key.tag, line = "tag:yaml.org,2002:str", key.start_mark.line + 1
            if key.value in lines:
                where = f"line {line}" if lines[key.value] == line else f"lines {lines[key.value]} and {line}"
                raise ConfigError(f"{spell_name(key.value)} is given twice ({where}); expected each field once; remove one of them")
            lines[key.value] = line
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {}
for tag, spelling, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    # A number of more digits than these is read as text, and refused by the field.
    ("int", r"[-+]?(0|[1-9][0-9_]{0,99})", list("-+0123456789")),
    ("float", r"[-+]?([0-9][0-9_]{0,99}(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{spelling})\Z"), first)


def parse_suite(text: str, settings: list[str] | None = None) -> Suite:
    """A suite from the text of its file; `settings` are `section.field=value`, in YAML, and win over the file.

    Raises:
        ConfigError: one sentence for each thing that is wrong.
    """
    fields = _yaml(text, "the suite file")
    if not isinstance(fields, dict):
        raise ConfigError(f"the suite file is {spell(fields)}; expected the fields of a suite; begin with name: my-suite")
    for setting in settings or []:
        _apply(fields, setting)
    try:
        return Suite.model_validate(fields)
    except ValidationError as error:
        raise config_error(Suite, error) from None


def _yaml(text: str, what: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where, remedy = (f" at line {mark.line + 1}", "correct that line") if mark else ("", "save it as plain text")
        problem = getattr(error, "problem", None) or getattr(error, "reason", "unreadable")
        raise ConfigError(f"{what} is not plain YAML{where} ({problem}); expected lines such as name: my-suite; {remedy}") from None
    except RecursionError:
        raise ConfigError(f"{what} is nested too deeply; expected sections of fields; remove some brackets") from None


def _apply(fields: dict[str, Any], setting: str) -> None:
    path, equals, value = setting.partition("=")
    if not equals or not all(part.strip() for part in path.split(".")):
        raise ConfigError(f"--set is {setting!r}; expected section.field=value; write for example --set training.tokens=100000")
    *parents, last = path.strip().split(".")
    here: Any = fields
    for parent in parents:
        here = here.setdefault(parent, {}) if isinstance(here, dict) else None
    if not isinstance(here, dict):
        raise ConfigError(
            f"--set is {setting!r}; expected a field of a section, and {'.'.join(parents)!r} is none; write for example --set training.tokens=100000"
        )
    here[last] = _yaml(value, f"--set {spell_name(path)}")
