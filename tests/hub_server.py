"""A server that speaks the hub's protocol over HTTP, in a thread of the test: repositories, the store of large files, commits, downloads.

As `huggingface_hub` asks: which files are large, where to put them, and one commit that names them. Nothing is seen before that.
"""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_server import LocalServer, Silent

LARGE = (".safetensors", ".npz", ".pt", ".parquet", ".png")


class HubServer(LocalServer):
    """Its repositories are lists of commits, each a dictionary from path to content; `blobs` are large files by their SHA-256."""

    def __init__(self) -> None:
        super().__init__()
        self.address = f"http://127.0.0.1:{self.port}"
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: list[str] = []
        """SHA-256 of each large file that was sent."""
        self.tokens: set[str | None] = set()
        self.needs_token: str | None = None
        self.refuse_uploads_after: int | None = None
        """After so many large files the server is out of order."""

    def start(self) -> None:
        hub = self

        class Asked(Silent, BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.answer("POST")

            def do_GET(self) -> None:
                self.answer("GET")

            def do_HEAD(self) -> None:
                self.answer("HEAD")

            def do_PUT(self) -> None:
                self.answer("PUT")

            def answer(self, method: str) -> None:
                length = self.headers["Content-Length"]
                body = self.rfile.read(int(length)) if length else self._chunks()
                hub.tokens.add(self.headers["Authorization"])
                status, headers, data = hub.respond(method, self.path.partition("?")[0], body, self.headers["Authorization"])
                if status == 200 and (part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")):
                    status, data = 206, data[int(part[1]) : int(part[2]) + 1]
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(data))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if method != "HEAD":
                    self.wfile.write(data)

            def _chunks(self) -> bytes:
                if self.headers["Transfer-Encoding"] != "chunked":
                    return b""
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

        self.serve(Asked)

    def head(self, repository: str) -> dict[str, bytes]:
        """What is published there."""
        return self.repositories[repository][-1]

    def respond(self, method: str, path: str, body: bytes, authorization: str | None) -> tuple[int, dict[str, str], bytes]:
        if self.needs_token and authorization != f"Bearer {self.needs_token}":
            return 401, {"X-Error-Message": "Invalid credentials"}, b"{}"
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.repositories:
                return _json({"url": f"{self.address}/{name}"}, 409)
            self.repositories[name] = [{".gitattributes": b"*.npz filter=lfs"}]
            return _json({"url": f"{self.address}/{name}"})
        if found := re.fullmatch(r"/blobs/(\w+)", path):
            return self._upload(found[1], body)
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return _json({"objects": [self._where(each) for each in json.loads(body)["objects"]], "transfer": "basic"})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            if found[1] not in self.repositories:
                return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
            return self._api(found[1], found[2] or "revision/main", body)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
            return self._download(found[1], found[2], found[3])
        return 404, {}, b"{}"

    def _api(self, repository: str, what: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        commits = self.repositories[repository]
        if what.startswith("revision/"):
            number = self._commit(repository, what.partition("/")[2])
            siblings = [_sibling(name, data) for name, data in commits[number].items()]
            return _json({"id": repository, "sha": _sha(number), "siblings": siblings})
        if what.startswith("tree/"):
            files = commits[self._commit(repository, what.split("/")[1])]
            return _json([{"type": "file", "path": name, "size": len(data), "oid": _git(data)} for name, data in files.items()])
        if what.startswith("preupload/"):
            asked = json.loads(body)["files"]
            modes = {each["path"]: "lfs" if each["path"].endswith(LARGE) else "regular" for each in asked}
            return _json({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None} for path, mode in modes.items()]})
        if what.startswith("commit/"):
            return self._publish(repository, [json.loads(line) for line in body.splitlines()])
        return 404, {}, b"{}"

    def _publish(self, repository: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, str], bytes]:
        commits = self.repositories[repository]
        if lines[0]["value"].get("parentCommit") not in (None, _sha(len(commits) - 1)):
            return 412, {"X-Error-Message": "A commit has happened since"}, b"{}"
        files = dict(commits[-1])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commits.append(files)
        number = len(commits) - 1
        return _json({"commitUrl": f"{self.address}/{repository}/commit/{_sha(number)}", "commitOid": _sha(number)})

    def _upload(self, sha256: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self.refuse_uploads_after is not None and len(self.uploads) >= self.refuse_uploads_after:
            return 403, {}, b"out of order"
        if hashlib.sha256(body).hexdigest() != sha256:
            return 400, {}, b"these are other bytes"
        self.uploads.append(sha256)
        self.blobs[sha256] = body
        return 200, {}, b""

    def _where(self, each: dict[str, Any]) -> dict[str, Any]:
        said = {"oid": each["oid"], "size": each["size"]}
        return said if each["oid"] in self.blobs else said | {"actions": {"upload": {"href": f"{self.address}/blobs/{each['oid']}"}}}

    def _download(self, repository: str, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        if repository not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        number = self._commit(repository, revision)
        files = self.repositories[repository][number]
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": _sha(number)}, b""
        return 200, {"ETag": f'"{_git(files[name])}"', "X-Repo-Commit": _sha(number)}, files[name]

    def _commit(self, repository: str, revision: str) -> int:
        return len(self.repositories[repository]) - 1 if revision == "main" else int(revision, 16)


def _json(said: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(said).encode()


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    large = {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 127}} if name.endswith(LARGE) else {}
    return {"rfilename": name, "size": len(data), "blobId": _git(data)} | large


def _sha(number: int) -> str:
    return f"{number:040x}"


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 (as git does)
