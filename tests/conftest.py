"""A model, a text and a suite that are small enough to run whole in a test, and made anew by it."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when the hub's library is imported: tests need no network

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read once, when Triton is imported, which transformers does: its kernels run on the CPU then

import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

torch.set_num_threads(1)  # for matrices this small a second thread costs more than it does


class S3Server:
    """rclone's S3 server on this machine: a real one, whose buckets are the folders of `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._port, self.port = _free_port(), _free_port()
        self.environment = {
            "AWS_ACCESS_KEY_ID": "a-key-of-a-test",
            "AWS_SECRET_ACCESS_KEY": "a-secret-of-a-test",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
        }

    def start(self) -> None:
        key = f"{self.environment['AWS_ACCESS_KEY_ID']},{self.environment['AWS_SECRET_ACCESS_KEY']}"
        command = [Path(sys.executable).with_name("rclone"), "serve", "s3", "--auth-key", key, "--addr", f"127.0.0.1:{self._port}", self.root]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    break
            time.sleep(0.1)
        else:
            raise TimeoutError("rclone does not answer")
        self._front = ThreadingHTTPServer(("127.0.0.1", self.port), type("Front", (_RangesAsInS3,), {"port": self._port}))
        threading.Thread(target=self._front.serve_forever, daemon=True).start()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._front.shutdown()
        self._front.server_close()

    def new_bucket(self, name: str) -> str:
        (self.root / name).mkdir(parents=True)
        return f"s3://{name}"


class _RangesAsInS3(BaseHTTPRequestHandler):
    """Passes requests on to rclone, and calls a part a part: rclone 1.75 answers a range with status 200 where S3 says 206, and obstore
    does not take that (gofakes3, which it is made of, has it mended since)."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    port: int

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        rclone = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            rclone.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                rclone.putheader(name, value)
            rclone.endheaders(body)
            answer = rclone.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self.close_connection = True  # as of a server that died
            return
        finally:
            rclone.close()
        self.send_response_only(206 if answer.status == 200 and answer.headers["Content-Range"] else answer.status)
        for name, value in answer.headers.items():
            if name not in ("Content-Length", "Transfer-Encoding", "Connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", (self.command == "HEAD" and answer.headers["Content-Length"]) or str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server with one bucket, `bucket`, whose credentials are in the environment."""
    server = S3Server(tmp_path / "s3")
    server.new_bucket("bucket")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.start()
    yield server
    server.kill()


SUBJECTS = ("the river", "a small engine", "the old library", "every neuron", "the northern harbour", "our telescope", "a wooden bridge")
VERBS = ("carries", "measures", "forgets", "repairs", "describes", "follows", "surrounds", "outlives")
OBJECTS = ("seven lanterns", "the morning light", "a list of names", "its own shadow", "the winter timetable", "an honest answer", "salt and iron")
ENDINGS = ("before noon", "without a sound", "for the third time", "in spite of the rain", "as the manual says", "again and again")
SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}


def tiny_documents(num_documents: int = 400, seed: int = 0) -> list[str]:
    """Documents whose sentences all name the document, `In note 17, ...`, so that a piece of text tells where it is from."""
    chance = random.Random(seed)  # noqa: S311
    return [
        " ".join(
            f"In note {number}, {chance.choice(SUBJECTS)} {chance.choice(VERBS)} {chance.choice(OBJECTS)} {chance.choice(ENDINGS)}."
            for _ in range(chance.randint(4, 12))
        )
        for number in range(num_documents)
    ]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Gemma 3 of three layers and a tokenizer of 512 tokens."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=list(SPECIAL_TOKENS.values()), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(tiny_documents(100, seed=1), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS).save_pretrained(folder)
    config = Gemma3TextConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,  # d_attn, 24, is not d_model
        query_pre_attn_scalar=12,
        max_position_embeddings=128,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config)
    for parameter in model.parameters():  # transformers' initial weights are so small that every block does next to nothing
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `notes.jsonl`: 400 documents, some 60,000 tokens."""
    folder = tmp_path_factory.mktemp("text")
    lines = [json.dumps({"text": document, "number": number}) for number, document in enumerate(tiny_documents())]
    (folder / "notes.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def tiny_suite(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    """The fields of a suite file: seven dictionaries at six sites, 180 steps each."""
    return tiny_fields(tiny_model, tiny_text)


def tiny_fields(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    return {
        "name": "tiny",
        "model": {"source": str(tiny_model), "dtype": "float32"},
        "text": {"source": str(tiny_text / "*.jsonl"), "context": 32, "tokens": 16_384, "held_out_tokens": 4_096},
        "harvest": {"block_sequences": 16, "batch_sequences": 8},
        "sites": {"layers": [0, 1], "kinds": ["resid_post", "mlp_out", "attn_z"]},
        "dictionaries": [{"widths": 64, "target_l0s": 8}, {"widths": 64, "target_l0s": 16, "sites": "L01.resid_post"}],
        "training": {
            "recipe": "gemma-scope-2",
            "tokens": 46_080,
            "batch_rows": 256,
            "shuffle_rows": 2_048,
            "inputs": "centred",
            "learning_rate": 5e-3,
            "learning_rate_warmup": 5,
            "learning_rate_decay": 0.2,
            "threshold_parameter": "linear",
            "sparsity_warmup": 20,
            "target_l0_objective": "batch-mean",
            "target_l0_coefficient": 0.05,
            "checkpoint_steps": 60,
        },
        "evaluation": {"loss_sequences": 16},
        "device": "cpu",
    }
