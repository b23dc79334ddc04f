"""Progress: a bar with rate and time left on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

LOG_SECONDS = 30


class Progress:
    """Counts up to `total` of a unit.

    Args:
        name: what is done, such as `train L09.resid_post`. start: how much was done before this run. silent: for work that
            another process reports.
    """

    def __init__(self, name: str, total: int, unit: str, start: int = 0, silent: bool = False) -> None:
        terminal = sys.stderr.isatty() and not silent
        self._bar = tqdm(
            desc=name, total=total, initial=start, unit=f" {unit}", unit_scale=True, dynamic_ncols=True, disable=not terminal, leave=True
        )
        self._name, self._total, self._unit, self._done, self._start = name, total, unit, start, start
        self._terminal, self._silent = terminal, silent
        self._began = self._spoke = time.monotonic()
        self._done_before = start
        self._note = ""

    def advance(self, amount: int, note: str = "") -> None:
        self._done, self._note = self._done + amount, note or self._note
        if self._terminal:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(amount)
        elif not self._silent and time.monotonic() - self._spoke > LOG_SECONDS:
            self._say()

    def _say(self) -> None:
        before, self._spoke = self._spoke, time.monotonic()
        # Since the last line, not since the beginning: the first steps of a training, and a first pass that compiles, are slower than all others.
        rate = (self._done - self._done_before) / max(1e-9, self._spoke - before)
        self._done_before = self._done
        left = max(0, self._total - self._done) / rate if rate else float("inf")
        share = f"{self._done:,} of {self._total:,} {self._unit}"
        note = f"  {self._note}" if self._note else ""
        print(f"{self._name}: {share}, {rate:,.0f}/s, {left:,.0f} s left{note}", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if not (self._terminal or self._silent) and error is None and self._done > self._start:
            seconds = time.monotonic() - self._began
            note = f"  {self._note}" if self._note else ""
            rate = (self._done - self._start) / max(1e-9, seconds)
            print(f"{self._name}: {self._done - self._start:,} {self._unit} in {seconds:,.1f} s, {rate:,.0f}/s{note}", file=sys.stderr, flush=True)
