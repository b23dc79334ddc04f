"""A device that is too small is said before it is used, with what would fit."""

from typing import Any

import pytest
import yaml

from core.errors import ConfigError
from core.suite_file import parse_suite
from tasks.resources import lack_of_room


def test_too_little_memory_is_said_with_the_shards_that_would_fit(tiny_suite: dict[str, Any]) -> None:
    suite = parse_suite(yaml.safe_dump(tiny_suite), [])
    lack_of_room(suite, need=10 * 10**9, free=10 * 10**9, device="cuda:0")
    with pytest.raises(ConfigError, match=r"cuda:0 has 10.0 GB, .* needs 25.0 GB; expected room for it; set training.shards: 4 "):
        lack_of_room(suite, need=25 * 10**9, free=10 * 10**9, device="cuda:0")
    half = parse_suite(yaml.safe_dump(tiny_suite), ["training.shards=2"])
    with pytest.raises(ConfigError, match=r"training\.shards: 4 "):
        lack_of_room(half, need=11 * 10**9, free=10 * 10**9, device="cuda:0")
