"""A real S3 server on this machine, for tests of stores in buckets."""

import http.client
import subprocess
import sys
import threading
from contextlib import closing, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ports import free_port, until_answered


class S3Server:
    """rclone's S3 server on this machine: a real one, whose buckets are the folders of `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.creates_conditionally = True
        self.behind, self.port = free_port(), free_port()
        self.environment = {
            "AWS_ACCESS_KEY_ID": "a-key-of-a-test",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-a-test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
        }

    def start(self) -> None:
        key = f"{self.environment['AWS_ACCESS_KEY_ID']},{self.environment['AWS_SECRET_ACCESS_KEY']}"
        command = [Path(sys.executable).with_name("rclone"), "serve", "s3", "--auth-key", key, "--addr", f"127.0.0.1:{self.behind}", self.root]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until_answered(self.behind, tries=300)
        self._front = ThreadingHTTPServer(("127.0.0.1", self.port), type("Front", (_AsInS3,), {"rclone": self}))
        threading.Thread(target=self._front.serve_forever, daemon=True).start()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._front.shutdown()
        self._front.server_close()

    def new_bucket(self, name: str) -> str:
        (self.root / name).mkdir(parents=True)
        return f"s3://{name}"


class _AsInS3(BaseHTTPRequestHandler):
    """Passes requests on to rclone, and does what S3 does and rclone 1.75 does not: it answers a range with status 206, without which obstore
    does not take it (gofakes3, which rclone is made of, has that mended since), and with If-None-Match it creates only what is not there."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    rclone: S3Server
    _creating = threading.Lock()

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        creates = "If-None-Match" in self.headers and self.rclone.creates_conditionally
        try:
            with self._creating if creates else nullcontext():
                if creates and (self.rclone.root / unquote(urlsplit(self.path).path).lstrip("/")).exists():
                    status, headers, content = 412, [], b"<Error><Code>PreconditionFailed</Code></Error>"
                else:
                    status, headers, content = self._ask(body)
        except (OSError, http.client.HTTPException):
            self.close_connection = True  # as of a server that died
            return
        self.send_response_only(206 if status == 200 and "Content-Range" in dict(headers) else status)
        length = str(len(content))
        for name, value in headers:
            if self.command == "HEAD" and name == "Content-Length":
                length = value
            elif name not in ("Content-Length", "Transfer-Encoding", "Connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.rclone.behind)) as behind:
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                behind.putheader(name, value)
            behind.endheaders(body)
            answer = behind.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on
