"""Prompts: what a language model is asked of a latent, and how its answers are read.

To explain: excerpts in which the latent fires, with the tokens on which it does between << and >> and how strongly, and some in which it does not, as
in Bills et al. (2023) and arXiv:2410.13928. To judge an explanation: what it leads one to expect of other excerpts. Every answer is JSON of a known
form; one of another form is no answer, and is never guessed at.

Shapes, in suffixes: N excerpts, W tokens of one.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import JumpsuiteError

STRONGEST = 10
"""Activations are spoken of as whole numbers up to this one."""
LONGEST_EXPLANATION = 500
"""Characters."""

Pieces = Sequence[str]
"""The texts of an excerpt's tokens."""
Mask = npt.NDArray[np.bool_]


class Malformed(JumpsuiteError):
    """An answer is not of the form that was asked for."""


@dataclass(frozen=True)
class Prompt:
    system: str
    user: str
    answer_tokens: int
    """That an answer may take at most."""
    schema: dict[str, Any]
    """JSON schema of the answer, for servers that hold models to one."""

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.user}]


EXPLAIN = (
    "You study a feature inside a language model. It is active on some tokens of text. You see excerpts; tokens on which it is active are between "
    f"<< and >>, and listed with its strength there, 1 to {STRONGEST}. In other excerpts it is not active. Say what makes it active: one short "
    'sentence, about the text alone, as specific as the excerpts allow. Answer with JSON: {"explanation": "..."}'
)


def to_explain(firing: Sequence[Pieces], activations_NW: npt.NDArray[Any], quiet: Sequence[Pieces]) -> Prompt:
    """Ask what a latent means.

    Args:
        activations_NW: of the excerpts in which it fires.
    """
    strongest = activations_NW.max(initial=0.0)
    lines = []
    for number, (pieces, f_W) in enumerate(zip(firing, activations_NW, strict=True), 1):
        strengths = [(piece, max(1, round(STRONGEST * f / strongest))) for piece, f in zip(pieces, f_W, strict=True) if f > 0]
        lines += [f"Excerpt {number}: {_quoted(_marked(pieces, f_W > 0))}", f"Active: {json.dumps(strengths, ensure_ascii=False)}"]
    lines += [f"Not active: {_quoted(''.join(pieces))}" for pieces in quiet]
    return Prompt(EXPLAIN, "\n".join(lines), 200, _object(explanation={"type": "string"}))


def read_explanation(answer: str) -> str:
    """Raises Malformed."""
    said = _read(answer, "explanation")
    # A weak model may repeat the question, and with it the form of an answer, whose explanation is three dots.
    if not isinstance(said, str) or not any(map(str.isalnum, said := " ".join(said.split()))):
        raise Malformed(f"the explanation is {said!r}; expected a sentence; ask again")
    return said[:LONGEST_EXPLANATION]


_TOLD = "A feature inside a language model is active on some tokens of text. You are told what makes it active, and"
_EACH = "Answer with JSON that has one number for each, in their order:"
SIMULATE = (
    f"{_TOLD} the numbered tokens of an excerpt. Say how strongly it is active on each token: a whole number from 0, not at all, as on most, to "
    f'{STRONGEST}. {_EACH} {{"activations": [0, ...]}}'
)
DETECT = f'{_TOLD} some excerpts. Say of each whether the feature is active anywhere in it: 1 for yes, 0 for no. {_EACH} {{"active": [0, ...]}}'
RECOGNISE = (
    f"{_TOLD} some excerpts, in which tokens are marked by << and >>. Say of each whether the marked tokens are those on which it is active: "
    f'1 for yes, 0 for no. {_EACH} {{"right": [0, ...]}}'
)


def to_simulate(explanation: str, pieces: Pieces) -> Prompt:
    """Ask for the activations on each token of an excerpt."""
    tokens = "\n".join(f"{number}: {_quoted(piece)}" for number, piece in enumerate(pieces, 1))
    return _judging(SIMULATE, explanation, tokens, "activations", len(pieces), STRONGEST)


def to_detect(explanation: str, excerpts: Sequence[Pieces]) -> Prompt:
    """Ask in which excerpts the latent fires."""
    return _judging(DETECT, explanation, _numbered("".join(pieces) for pieces in excerpts), "active", len(excerpts), 1)


def to_recognise(explanation: str, excerpts: Sequence[Pieces], marked_NW: Mask) -> Prompt:
    """Ask in which excerpts the marked tokens are those on which the latent fires."""
    texts = (_marked(pieces, marked_W) for pieces, marked_W in zip(excerpts, marked_NW, strict=True))
    return _judging(RECOGNISE, explanation, _numbered(texts), "right", len(excerpts), 1)


def _judging(task: str, explanation: str, text: str, name: str, number: int, highest: int) -> Prompt:
    numbers = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": highest}, "minItems": number, "maxItems": number}
    return Prompt(task, f"What makes it active: {explanation}\n\n{text}", 40 + 4 * number, _object(**{name: numbers}))


def read_numbers(answer: str, prompt: Prompt) -> list[int]:
    """What was asked for by `to_simulate`, `to_detect` or `to_recognise`. Raises Malformed."""
    ((name, form),) = prompt.schema["properties"].items()
    numbers = _read(answer, name)
    if not isinstance(numbers, list) or len(numbers) != form["minItems"]:
        raise Malformed(f"{name} is {str(numbers)[:80]}; expected {form['minItems']} numbers; ask again")
    for number in numbers:
        if type(number) is not int or not 0 <= number <= form["items"]["maximum"]:
            raise Malformed(f"{name} has {str(number)[:80]}; expected whole numbers from 0 to {form['items']['maximum']}; ask again")
    return list(numbers)


def _read(answer: str, name: str) -> Any:
    """A field of the first JSON object in an answer, which some models put between other words."""
    begin = answer.find("{")
    try:
        found, _ = json.JSONDecoder().raw_decode(answer[begin:]) if begin >= 0 else (None, 0)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or name not in found:
        raise Malformed(f"the answer is {answer[:80]!r}; expected JSON with {name}; ask again")
    return found[name]


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _numbered(texts: Iterator[str]) -> str:
    return "\n".join(f"Excerpt {number}: {_quoted(text)}" for number, text in enumerate(texts, 1))


def _quoted(text: str) -> str:
    """On one line, whatever is in it."""
    return json.dumps(text, ensure_ascii=False)


def _marked(pieces: Pieces, marked_W: npt.NDArray[Any]) -> str:
    """An excerpt with runs of marked tokens between << and >>."""
    text, inside = "", False
    for piece, mark in zip(pieces, marked_W, strict=True):
        text += ("<<" if mark and not inside else ">>" if inside and not mark else "") + piece
        inside = bool(mark)
    return text + (">>" if inside else "")
