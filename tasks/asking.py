"""Asking: a language model is asked each thing once, and never for more tokens than it may cost."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from core.anatomy import device_of
from core.asking import forecast
from core.errors import JumpsuiteError
from core.key import key_of
from core.prompts import Malformed, Prompt
from core.suite import Endpoint
from storage.catalogue import Catalogue
from storage.endpoint import ChatEndpoint, Usage
from storage.local_model import LocalModel
from storage.objects import Store

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 2
"""Answers to a question: of a malformed one, another is asked for."""


def asked_for(settings: Endpoint, latents: int, positions: int) -> str:
    """What explaining so many latents, in contexts of so many positions, will take of a language model, in a sentence."""
    questions, prompt, answer = forecast(latents, settings.contexts, positions)
    said = f"{questions:,} questions to {settings.model}, about {prompt + answer:,} tokens"
    return f"{said}, which cost {Usage(prompt, answer).cost(settings.price):.2g}" if settings.price else said


@contextmanager
def asking(catalogue: Catalogue) -> Iterator["Asker | None"]:
    """Who asks the suite's language model, if it has one: one process at a time, for there is one account. Others wait."""
    settings = catalogue.suite.explaining.endpoint
    if settings is None:
        yield None
        return
    spent = f"{catalogue.suite.name}/spent"
    with catalogue.store.turn(spent):
        endpoint = _endpoint(catalogue, settings)
        asker = Asker(catalogue.store, endpoint, f"{spent}/tokens.json")
        try:
            yield asker
        finally:
            endpoint.close()
        log.info("%s tokens of %s have been spent on %s", f"{asker.spent.tokens:,}", f"{settings.max_tokens:,}", settings.model)
        if asker.unanswered:
            log.warning("%s questions were answered in another form than was asked for, twice, and are unscored", f"{asker.unanswered:,}")


def _endpoint(catalogue: Catalogue, settings: Endpoint) -> ChatEndpoint | LocalModel:
    if settings.address == "local":
        return LocalModel(catalogue.store, settings, device_of(catalogue.suite.device))
    return ChatEndpoint(settings)


class Asker:
    """Asks an endpoint, for one suite at a time, from any number of threads. Answers are kept in the store, and with them what they cost.

    Args:
        ledger: the key of a record of the tokens that were spent so far, for which no other process asks meanwhile.
    """

    def __init__(self, store: Store, endpoint: ChatEndpoint | LocalModel, ledger: str) -> None:
        self._store, self._endpoint, self._ledger = store, endpoint, ledger
        self._counting, self._under_way = threading.Condition(), 0
        record = store.get_record(ledger)
        # Records of before 2026-11-28 have one number: it counts as answers, which cost more.
        self._spent = Usage(int(record.get("prompt", 0)), int(record.get("answer", record.get("tokens", 0)))) if record else Usage(0, 0)
        self.unanswered = 0
        """Questions to which no answer was well-formed."""

    @property
    def spent(self) -> Usage:
        return self._spent

    def ask(self, prompt: Prompt, read: Callable[[str], T]) -> T | None:
        """What an answer says, or None where none was well-formed.

        Raises:
            JumpsuiteError: the next request could cost more than is left, or the server gives no answer.
        """
        for attempt in range(ATTEMPTS):
            try:
                return read(self._answer(self._endpoint.request(prompt, attempt)))
            except Malformed as malformed:
                log.debug("%s", malformed)
        with self._counting:
            self.unanswered += 1
        return None

    def _answer(self, body: dict[str, Any]) -> str:
        key = key_of("answer", body)
        place = f"answers/{key[:2]}/{key}.json"
        if known := self._store.get_record(place):
            return str(known["text"])
        most = self._endpoint.most(body)
        self._set_aside(most)
        cost = Usage(0, 0)
        try:
            answer = self._endpoint.complete(body, in_vain=lambda: self._require(most))
            cost = answer.usage
            self._store.put_record(place, {"text": answer.text, "tokens": cost.tokens, "request": body})
        finally:
            with self._counting:
                self._under_way -= 1
                self._note(cost - most)
                self._counting.notify_all()
        return answer.text

    def _set_aside(self, most: Usage) -> None:
        """Count what a request may cost before it is made: of a process that is killed meanwhile nobody will know what came of it.

        What others cost in the end is less than was set aside for them, so they are waited for where it does not fit.
        """
        with self._counting:
            self._counting.wait_for(lambda: not self._under_way or self._reached(most) is None)
            self._require(most)
            self._under_way += 1

    def _require(self, most: Usage) -> None:
        with self._counting:
            if reached := self._reached(most):
                raise JumpsuiteError(f"{reached}; raise it and run again, which goes on from there")
            self._note(most)

    def _reached(self, most: Usage) -> str | None:
        """The cap that this would go beyond."""
        settings, spent = self._endpoint.settings, self._spent
        if (spent + most).tokens > settings.max_tokens:
            return (
                f"explanations.endpoint.max_tokens is {settings.max_tokens:,}, of which {spent.tokens:,} are spent; expected room for the next "
                f"request, which may take {most.tokens:,}"
            )
        if settings.price and settings.max_cost is not None and (spent + most).cost(settings.price) > settings.max_cost:
            return (
                f"explanations.endpoint.max_cost is {settings.max_cost:g}, of which {spent.cost(settings.price):.4g} are spent; expected room "
                f"for the next request, which may take {most.cost(settings.price):.2g}"
            )
        return None

    def _note(self, usage: Usage) -> None:
        with self._counting:
            self._spent += usage
            self._store.put_record(self._ledger, vars(self._spent))
