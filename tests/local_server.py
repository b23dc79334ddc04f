"""An HTTP server in a thread of the test, at a port of its own."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ports import free_port


class Silent:
    """Of a handler: it says nothing of requests."""

    def log_message(self, *_: Any) -> None:
        pass


class LocalServer:
    def __init__(self) -> None:
        self.port = free_port()

    def serve(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
