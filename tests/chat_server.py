"""A server that speaks OpenAI's chat completions over HTTP, in a thread of the test. Its model reads well and knows one kind of meaning: a token."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from local_server import LocalServer, Silent

TASKS = {"explanation": "explain", "activations": "simulate", "active": "detect", "right": "recognise"}
Model = Callable[[str, str], str]
"""From a task and what the user says to an answer."""


def reader(task: str, said: str) -> str:
    """Explains a latent by the token on which it fires most often, and judges such explanations literally."""
    if task == "explain":
        active = Counter(piece for line in re.findall(r"^Active: (.*)$", said, re.M) for piece, _ in json.loads(line))
        return json.dumps({"explanation": f"the token {json.dumps(active.most_common(1)[0][0])}"})
    token, text = said.partition("\n\n")[0].partition("the token ")[2], said.partition("\n\n")[2]
    token = json.loads(token)
    quoted = [json.loads(line.partition(": ")[2]) for line in text.splitlines()]
    if task == "simulate":
        return json.dumps({"activations": [10 * (piece == token) for piece in quoted]})
    if task == "detect":
        return json.dumps({"active": [int(token in excerpt) for excerpt in quoted]})
    marked = [set(re.findall(r"<<(.*?)>>", excerpt)) for excerpt in quoted]
    return json.dumps({"right": [int(bool(each) and all(token in mark for mark in each)) for each in marked]})


class ChatServer(LocalServer):
    """Its faults are codes with which the next requests are answered, each with seconds to wait; at zero it hangs up."""

    def __init__(self, model: Model = reader) -> None:
        super().__init__()
        self.model = model
        self.address = f"http://127.0.0.1:{self.port}/v1"
        self.tokens = self.prompt_tokens = 0
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.faults: list[tuple[int, str | None]] = []
        self.counting = threading.Lock()

    def start(self) -> None:
        chat = self

        class Asked(Silent, BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with chat.counting:
                    chat.keys.append(self.headers["Authorization"])
                    fault = chat.faults.pop(0) if chat.faults else None
                if self.path != "/v1/chat/completions":
                    fault = (404, None)
                if fault and not fault[0]:
                    self.close_connection = True
                    return
                if fault:
                    self.send_response(fault[0])
                    if fault[1]:
                        self.send_header("Retry-After", fault[1])
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                schema = body["response_format"]["json_schema"]["schema"]["properties"]
                answer = chat.model(TASKS[next(iter(schema))], body["messages"][1]["content"])
                prompt = sum(len(message["content"].split()) for message in body["messages"])
                usage = {"prompt_tokens": prompt, "total_tokens": prompt + len(answer.split())}
                with chat.counting:
                    chat.prompt_tokens += prompt
                    chat.tokens += usage["total_tokens"]
                    chat.asked.append(body)
                data = json.dumps({"choices": [{"message": {"content": answer}}], "usage": usage}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.serve(Asked)
