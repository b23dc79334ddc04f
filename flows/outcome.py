"""How a flow ends: completed, or failed with a reason of one sentence instead of a traceback."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from prefect.exceptions import FailedRun, TerminationSignal
from prefect.states import Completed, Failed, State

from core.errors import ConfigError, JumpsuiteError
from flows.engine import fault_of
from storage.harvest import Struck
from storage.places import FAULTS, cause_of

MISCONFIGURED = "Misconfigured"
"""Name of the Failed state of a run that no repetition would help."""
DAMAGED = "Damaged"
"""Name of the Failed state of a run that found blocks damaged, which the next harvest makes anew."""

log = logging.getLogger(__name__)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Leaves, of errors that a user is meant to read, Prefect's traceback out of a run's log: what there is to say is in the sentence."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (JumpsuiteError, *FAULTS)):
        record.exc_info = record.exc_text = None
    return not isinstance(error, FailedRun)  # which its engine makes of a state that is in the log already


for runs in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(runs).addFilter(_without_traceback)


@dataclass
class Outcome:
    state: State = field(default_factory=Completed)
    reason: str | None = None
    name: str = "Failed"


@contextmanager
def outcome() -> Iterator[Outcome]:
    """Turn any error into a Failed state with one sentence: what a user can act on, or that the fault is ours (then also logged)."""
    result = Outcome()
    try:
        yield result
    except ConfigError as error:
        result.reason, result.name = str(error), MISCONFIGURED
    except Struck as error:
        result.reason, result.name = str(error), DAMAGED
    except JumpsuiteError as error:
        result.reason = str(error)
    except FAULTS as error:
        result.reason = f"the store failed ({cause_of(error)}); expected room and rights there; see to it and run again"
    except (MemoryError, torch.OutOfMemoryError):
        result.reason = (
            "out of memory; expected room for two blocks and one dictionary; "
            "lower harvest.block_sequences, training.shuffle_rows or training.batch_rows"
        )
    except Exception as error:
        if _told_to_end(error):
            raise KeyboardInterrupt from error
        result.reason = fault_of(error) or _unforeseen(error)
    if result.reason:
        result.state = Failed(message=result.reason, name=result.name)


def _unforeseen(error: Exception) -> str:
    log.error("the run ended with an error that nobody foresaw", exc_info=error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno}); this is a fault of Jumpsuite, please report it"


def _told_to_end(error: BaseException | None) -> bool:
    """Whether an error came of a signal to end: one that arrives while Prefect enters a task is followed by an error of Prefect's own."""
    while error and not isinstance(error, TerminationSignal | KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
