"""A model, a text and a suite that are small enough to run whole in a test, and made anew by it; and the servers that it runs with."""

import os
from pathlib import Path

# Read once each, when torch, Triton or the hub's library is imported. None of them is here: where tests run on every core, pytest's
# own process loads this file as well, and needs nothing of them.
os.environ["OMP_NUM_THREADS"] = "1"  # for matrices this small a second thread costs more than it does
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests need no network
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # its kernels run on the CPU then

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from ports import free_port
from prefect_server import PrefectServer
from s3_server import S3Server

from flows.engine import settle

# `make test` takes the first, `make test-all` the second. No time is too long: a busy machine is no mistake of the code.
for profile, examples in (("quick", 20), ("thorough", 300)):
    settings.register_profile(profile, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quick")

# Read once, when Prefect is imported, which tasks do: the server that `prefect_server` will start, whatever a developer has for their own work.
PREFECT_PORT = free_port()
for name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[name]
os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{PREFECT_PORT}/api"
settle(Path(os.devnull))  # where a server of its own would live, which the address spares it


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


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server, which flows of this process use."""
    from prefect.logging.handlers import APILogHandler

    server = PrefectServer(tmp_path_factory.mktemp("prefect"), PREFECT_PORT)
    server.start()
    yield os.environ["PREFECT_API_URL"]
    APILogHandler().flush()  # or it is tried when this process ends, with nobody there to take it
    server.stop()


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
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", layers=3)


def write_tiny_model(folder: Path, layers: int) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

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
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,  # d_attn, 24, is not d_model
        query_pre_attn_scalar=12,
        max_position_embeddings=128,
        sliding_window=16,
        layer_types=[("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)],
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
