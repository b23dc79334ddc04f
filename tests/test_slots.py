"""A slot is one run's at a time, and free again when its process is dead."""

import select
import signal
import subprocess
import sys
import uuid

from flows.slots import alone

HOLD = (
    "import sys; from flows.slots import alone; print('started', flush=True)\nwith alone(sys.argv[1]): print('has it', flush=True); sys.stdin.read()"
)


def holder(name: str) -> subprocess.Popen[str]:
    started = subprocess.Popen([sys.executable, "-c", HOLD, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert line_of(started) == "started"
    return started


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_a_slot_is_had_by_one_process_and_by_the_next_when_that_is_killed() -> None:
    name = f"test-{uuid.uuid4().hex}"
    first = holder(name)
    assert line_of(first) == "has it"
    second = holder(name)
    assert not select.select([second.stdout], [], [], 1)[0]
    first.send_signal(signal.SIGKILL)
    assert line_of(second) == "has it"
    with alone(f"{name}-another"):  # which nobody has
        pass
    second.kill()
    for process in (first, second):
        process.communicate()
