"""A restarted Prefect server does not wait for what it saw in its earlier life."""

import asyncio
import uuid

import prefect.settings
from prefect._internal.uuid7 import uuid7

from flows.ordering import BEGAN, CausalOrdering


def seen(identity: uuid.UUID) -> bool:
    return asyncio.run(CausalOrdering("triggers").event_has_been_seen(identity))


def test_what_was_before_the_server_counts_as_seen_and_what_is_to_come_does_not() -> None:
    earlier = uuid.UUID(int=(int((BEGAN - 60) * 1000) << 80) | (7 << 76) | (2 << 62))
    assert earlier.version == 7
    assert seen(earlier)
    assert not seen(uuid7())
    assert not seen(uuid.uuid4())


def test_a_server_that_starts_in_the_checkout_orders_events_so() -> None:
    assert prefect.settings.get_current_settings().server.events.causal_ordering == "flows.ordering"
