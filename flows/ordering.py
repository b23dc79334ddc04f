"""The order of events on a Prefect server that was restarted: what came before its start counts as seen.

An event that follows another one is held back until that has been seen, for the two may arrive the wrong way round. Prefect remembers in
memory what it has seen, so after a restart it waits for what it will never see again: a run that crashed then was not taken up at all.
The server is told of this module by its setting `server.events.causal_ordering`.
"""

import time
from uuid import UUID

from prefect.server.events.ordering import memory
from prefect.server.events.schemas.events import Event

BEGAN = time.time()


class CausalOrdering(memory.CausalOrdering):
    async def event_has_been_seen(self, event: UUID | Event) -> bool:
        identity = event.id if isinstance(event, Event) else event
        return _made(identity) < BEGAN or await super().event_has_been_seen(event)


def _made(identity: UUID) -> float:
    """When an identity was made, in seconds of Unix time: the first 48 bits of one of version 7, in milliseconds (RFC 9562, section 5.7)."""
    return (identity.int >> 80) / 1000 if identity.version == 7 else float("inf")
