"""An endpoint: a language model behind a server that speaks OpenAI's chat completions, as vLLM, llama.cpp, Ollama, transformers and most others do.

The key comes from the environment, and is never written or said.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import tenacity

from core.errors import JumpsuiteError
from core.prompts import Prompt
from core.suite import Endpoint, Price

KEYS = ("JUMPSUITE_API_KEY", "OPENAI_API_KEY")
TRY_AGAIN = {408, 409, 425, 429}
"""With these, and from 500 on, a server may answer later."""
LONGEST_SECONDS = 180
"""For which a request is tried again; a server's restart does not take that long."""
TEMPLATE_TOKENS = 128
"""That a server may put around the messages."""


@dataclass(frozen=True)
class Usage:
    """Tokens, as the server counts them."""

    prompt: int
    answer: int

    @property
    def tokens(self) -> int:
        return self.prompt + self.answer

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt + other.prompt, self.answer + other.answer)

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt - other.prompt, self.answer - other.answer)

    def cost(self, price: Price) -> float:
        return (self.prompt * price.prompt + self.answer * price.answer) / 1e6


@dataclass(frozen=True)
class Answer:
    text: str
    usage: Usage


class Refused(JumpsuiteError):
    """The server gives no answer, and would give none later."""


class _Later(Exception):
    """The server may answer when it is asked again.

    Args:
        seconds: after which, if it said so. may_have_cost: whether the model may have worked on it.
    """

    def __init__(self, reason: str, seconds: float | None = None, may_have_cost: bool = False) -> None:
        super().__init__(reason)
        self.seconds, self.may_have_cost = seconds, may_have_cost


class ChatEndpoint:
    def __init__(self, settings: Endpoint) -> None:
        self.settings = settings
        self._key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=settings.at_once)
        self._client = httpx.Client(base_url=settings.address.rstrip("/") + "/", headers=headers, timeout=settings.timeout, limits=limits)

    def close(self) -> None:
        self._client.close()

    def request(self, prompt: Prompt, attempt: int) -> dict[str, Any]:
        """What is sent, which names the answer.

        Args:
            attempt: of the same question; the first asks for the likeliest answer, another for another.
        """
        body: dict[str, Any] = {"model": self.settings.model, "messages": prompt.messages, "max_tokens": prompt.answer_tokens}
        body |= {"temperature": 1.0 if attempt else 0.0, "seed": attempt}
        if self.settings.structured:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": prompt.schema}}
        return body

    def most(self, body: dict[str, Any]) -> Usage:
        """More than a request can cost: a token is at least a byte."""
        return Usage(sum(len(message["content"].encode()) for message in body["messages"]) + TEMPLATE_TOKENS, int(body["max_tokens"]))

    def complete(self, body: dict[str, Any], in_vain: Callable[[], None]) -> Answer:
        """The model's answer. What a server cannot do now is tried again for three minutes, at growing distances or when it says.

        Args:
            in_vain: called for each attempt whose answer did not come though the model may have worked on it.

        Raises:
            Refused: there is none.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Later),
            wait=_wait,
            stop=tenacity.stop_after_delay(LONGEST_SECONDS),
            before_sleep=lambda state: in_vain() if state.outcome and getattr(state.outcome.exception(), "may_have_cost", False) else None,
            reraise=True,
        )
        try:
            return retrying(self._once, body)
        except _Later as last:
            if last.may_have_cost:
                in_vain()
            raise Refused(self._said(f"did not answer for {LONGEST_SECONDS} s ({last})", "start it, or correct the address")) from None

    def _once(self, body: dict[str, Any]) -> Answer:
        try:
            response = self._client.post("chat/completions", json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise _Later(str(error) or type(error).__name__) from None
        except httpx.TransportError as error:
            raise _Later(str(error) or type(error).__name__, may_have_cost=True) from None
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise Refused(self._said(f"cannot be asked ({error})", "correct it")) from None
        status = response.status_code
        if status in TRY_AGAIN or status >= 500:
            raise _Later(f"HTTP {status}", _seconds(response.headers.get("Retry-After")))
        if status != 200:
            said = response.text.replace(self._key, "…") if self._key else response.text
            reason = " ".join(said.split())[:160]
            hint = f"set {KEYS[0]}" if status in (401, 403) else "correct explanations.endpoint"
            raise Refused(self._said(f"answered HTTP {status} ({reason})", hint))
        try:
            found = response.json()
            prompt, tokens = int(found["usage"]["prompt_tokens"]), int(found["usage"]["total_tokens"])
            return Answer(str(found["choices"][0]["message"]["content"] or ""), Usage(prompt, tokens - prompt))
        except (ValueError, KeyError, IndexError, TypeError):
            raise Refused(self._said("gave no chat completion with its usage", "correct the address, which for most servers ends in /v1")) from None

    def _said(self, what: str, hint: str) -> str:
        return f"explanations.endpoint.address is {self.settings.address!r}, which {what}; expected an OpenAI-compatible server; {hint}"


def _seconds(after: str | None) -> float | None:
    try:
        return float(after) if after else None
    except ValueError:
        return None  # a date, which is rare


_growing = tenacity.wait_exponential_jitter(multiplier=0.5, max=20)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.seconds if isinstance(error, _Later) else None
    return min(asked, LONGEST_SECONDS) if asked is not None else _growing(state)
