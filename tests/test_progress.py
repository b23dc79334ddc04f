"""What a log says of work that goes on."""

from types import SimpleNamespace
from typing import Any

import pytest

from tasks import progress
from tasks.progress import Progress
from tasks.train import _note


def test_the_time_left_follows_the_present_speed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress("train", 1_000, "rows") as shown:
        now = 100.0
        shown.advance(100)  # slow at first: one a second
        now = 140.0
        shown.advance(400)  # then ten
    slow, quick, _ = caplog.messages
    assert slow == "train: 100 of 1,000 rows, 1/s, 900 s left"
    assert quick == "train: 500 of 1,000 rows, 10/s, 50 s left"


@pytest.mark.parametrize("dictionaries", [0, 1, 3, 4, 100])
def test_how_dictionaries_fare_fits_a_line_however_many_they_are(dictionaries: int) -> None:
    trainers: list[Any] = [SimpleNamespace(history=[{"error": 0.1 + i / 100, "l0": 10.0 + i}]) for i in range(dictionaries)]
    note = _note([*trainers, SimpleNamespace(history=[])])  # type: ignore[list-item]
    assert len(note) < 80
    if dictionaries == 100:
        assert note == "100 dictionaries: error 0.100 to 1.090, L0 10 to 109"
