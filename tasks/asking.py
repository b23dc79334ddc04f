"""Asking: a language model is asked each thing once, and never for more tokens than it may cost."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from core.errors import JumpsuiteError
from core.key import key_of
from core.prompts import Malformed, Prompt
from storage.catalogue import Catalogue
from storage.endpoint import ChatEndpoint
from storage.objects import Store

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 2
"""Answers to a question: of a malformed one, another is asked for."""


@contextmanager
def asking(catalogue: Catalogue) -> Iterator["Asker | None"]:
    """Who asks the suite's language model, if it has one: one process at a time, for there is one account."""
    settings = catalogue.suite.explanations.endpoint
    if settings is None:
        yield None
        return
    spent = f"{catalogue.suite.name}/spent"
    with catalogue.store.lock(spent):
        asker = Asker(catalogue.store, ChatEndpoint(settings), f"{spent}/tokens.json")
        yield asker
        log.info("%s tokens of %s have been spent on %s", f"{asker.spent:,}", f"{settings.max_tokens:,}", settings.model)
        if asker.unanswered:
            log.warning("%s questions were answered in another form than was asked for, twice, and are unscored", f"{asker.unanswered:,}")


class Asker:
    """Asks an endpoint, for one suite at a time, from any number of threads. Answers are kept in the store, and with them what they cost.

    Args:
        ledger: the key of a record of the tokens that were spent so far, for which no other process asks meanwhile.
    """

    def __init__(self, store: Store, endpoint: ChatEndpoint, ledger: str) -> None:
        self._store, self._endpoint, self._ledger = store, endpoint, ledger
        self._cap = endpoint.settings.max_tokens
        self._counting, self._under_way = threading.Condition(), 0
        record = store.get_record(ledger)
        self._spent = int(record["tokens"]) if record else 0
        self.unanswered = 0
        """Questions to which no answer was well-formed."""

    @property
    def spent(self) -> int:
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
        most = self._endpoint.most_tokens(body)
        self._set_aside(most)
        cost = 0
        try:
            answer = self._endpoint.complete(body, in_vain=lambda: self._require(most))
            cost = answer.tokens
            self._store.put_record(place, {"text": answer.text, "tokens": answer.tokens, "request": body})
        finally:
            with self._counting:
                self._under_way -= 1
                self._note(cost - most)
                self._counting.notify_all()
        return answer.text

    def _set_aside(self, most: int) -> None:
        """Count what a request may cost before it is made: of a process that is killed meanwhile nobody will know what came of it.

        What others cost in the end is less than was set aside for them, so they are waited for where it does not fit.
        """
        with self._counting:
            self._counting.wait_for(lambda: not self._under_way or self._spent + most <= self._cap)
            self._require(most)
            self._under_way += 1

    def _require(self, most: int) -> None:
        with self._counting:
            if self._spent + most > self._cap:
                raise JumpsuiteError(
                    f"explanations.endpoint.max_tokens is {self._cap:,}, of which {self._spent:,} are spent; expected room for the next "
                    f"request, which may take {most:,}; raise it and run again, which goes on from there"
                )
            self._note(most)

    def _note(self, tokens: int) -> None:
        with self._counting:
            self._spent += tokens
            self._store.put_record(self._ledger, {"tokens": self._spent})
