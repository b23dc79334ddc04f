"""Slices: a long axis, a few at a time."""


def slices(number: int, at_once: int) -> list[slice]:
    """What covers `number` entries in order, `at_once` in each but the last."""
    return [slice(first, min(first + at_once, number)) for first in range(0, number, at_once)]
