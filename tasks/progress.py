"""Progress: a bar with rate and time left on a terminal, a line now and then in a log, and a bar in the Prefect UI."""

import logging
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tqdm import tqdm

from tasks.live import shown

log = logging.getLogger(__name__)

LOG_SECONDS = 30


@dataclass
class Look:
    """At a progress: when, and how far it was."""

    time: float
    done: int


class Progress:
    """Counts up to `total` of a unit.

    Args:
        name: what is done, such as `train L09.resid_post`. total: how much there is to do, where that is known. start: how much was done
            before this run. silent: for work that another process reports.
    """

    def __init__(self, name: str, total: int | None, unit: str, start: int = 0, silent: bool = False) -> None:
        terminal = sys.stderr.isatty() and not silent
        self._bar = tqdm(
            desc=name, total=total, initial=start, unit=f" {unit}", unit_scale=True, dynamic_ncols=True, disable=not terminal, leave=True
        )
        self._name, self._total, self._unit, self._done, self._start = name, total, unit, start, start
        self._terminal, self._silent = terminal, silent
        self._began = time.monotonic()
        self._spoke, self._shown = Look(self._began, start), Look(self._began, start)
        self._note = ""
        self._showing = ExitStack()

    def advance(self, amount: int, note: str = "") -> None:
        self._done, self._note = self._done + amount, note or self._note
        if self._terminal:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(amount)
        elif not self._silent and time.monotonic() - self._spoke.time > LOG_SECONDS:
            log.info(self._line(self._spoke))

    def _line(self, last: Look) -> str:
        """How far it is, and how fast it was since the last look, which this one then is."""
        now, done = time.monotonic(), self._done
        # Not since the beginning: the first steps of a training, and a first pass that compiles, are slower than all others.
        rate = (done - last.done) / max(1e-9, now - last.time)
        last.time, last.done = now, done
        note = f"  {self._note}" if self._note else ""
        if self._total is None:
            return f"{self._name}: {done:,} {self._unit}, {rate:,.0f}/s{note}"
        left = max(0, self._total - done) / rate if rate else float("inf")
        return f"{self._name}: {done:,} of {self._total:,} {self._unit}, {rate:,.0f}/s, {left:,.0f} s left{note}"

    def _look(self) -> tuple[float, str]:
        return (0.0 if self._total is None else 100 * self._done / max(1, self._total)), self._line(self._shown)

    def __enter__(self) -> Self:
        if not self._silent:
            self._showing.enter_context(shown(self._look))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._showing.close()
        self._bar.close()
        if not (self._terminal or self._silent) and error is None and self._done > self._start:
            seconds = time.monotonic() - self._began
            note = f"  {self._note}" if self._note else ""
            rate = (self._done - self._start) / max(1e-9, seconds)
            log.info("%s: %s %s in %.1f s, %s/s%s", self._name, f"{self._done - self._start:,}", self._unit, seconds, f"{rate:,.0f}", note)
