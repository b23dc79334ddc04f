"""Ports of servers that tests start."""

import socket
import time


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until_answered(port: int, tries: int) -> None:
    """Wait for a server to take connections.

    Args:
        tries: one each tenth of a second, and fewer on a busy machine, which then waits for longer.

    Raises:
        TimeoutError: it took none.
    """
    for _ in range(tries):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"no server answers on port {port}")
