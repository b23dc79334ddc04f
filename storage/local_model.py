"""A local model: a chat model that transformers runs in this process, for who has no server. It is asked as an endpoint is."""

import threading
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError

from core.errors import ConfigError
from core.prompts import Prompt
from core.suite import Endpoint, Model
from storage.endpoint import Answer, Usage
from storage.models import ModelSource
from storage.objects import Store


class LocalModel:
    """Answers one question at a time. Raises ConfigError where the model cannot be had, or has no chat template."""

    def __init__(self, store: Store, settings: Endpoint, device: torch.device) -> None:
        self.settings = settings
        self._device, self._alone = device, threading.Lock()
        self._source = ModelSource(store, Model(source=settings.model, dtype="float32" if device.type == "cpu" else "bfloat16"))
        try:
            self._identity, self._tokenizer = self._source.identity, self._source.load_tokenizer()
            if not self._tokenizer.chat_template:
                raise ConfigError(
                    f"model.source is {settings.model!r}, which has no chat template; expected a model that was tuned to answer; choose another"
                )
        except ConfigError as error:
            raise self._of_ours(error) from None

    @staticmethod
    def _of_ours(error: ConfigError) -> ConfigError:
        return ConfigError(str(error).replace("model.source", "explanations.endpoint.model", 1))

    @cached_property
    def _model(self) -> Any:
        """Loaded for the first question that was not answered before."""
        try:
            return self._source.load(self._device)
        except ConfigError as error:
            raise self._of_ours(error) from None

    def close(self) -> None:
        """Give the device back."""
        self.__dict__.pop("_model", None)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def request(self, prompt: Prompt, attempt: int) -> dict[str, Any]:
        """As `ChatEndpoint.request`."""
        return {"model": self._identity, "messages": prompt.messages, "max_tokens": prompt.answer_tokens, "attempt": attempt}

    def most(self, body: dict[str, Any]) -> Usage:
        return Usage(self._tokens(body).shape[1], int(body["max_tokens"]))

    def complete(self, body: dict[str, Any], in_vain: Callable[[], None]) -> Answer:  # noqa: ARG002 (nothing is lost on its way here)
        """The likeliest answer; at another attempt one drawn at random, always the same."""
        tokens = self._tokens(body).to(self._device)
        how: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}
        if body["attempt"]:
            how |= {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        with self._alone, torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(body["attempt"])
            everything = self._model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=body["max_tokens"], **how)
        answer = everything[0, tokens.shape[1] :]
        return Answer(str(self._tokenizer.decode(answer, skip_special_tokens=True)), Usage(tokens.shape[1], len(answer)))

    def _tokens(self, body: dict[str, Any]) -> torch.Tensor:
        with self._alone:
            try:
                return self._rendered(body["messages"])
            except TemplateError:
                # Some templates know no system: what it would have been told is said by the user.
                system, user = (message["content"] for message in body["messages"])
                return self._rendered([{"role": "user", "content": f"{system}\n\n{user}"}])

    def _rendered(self, messages: list[dict[str, str]]) -> torch.Tensor:
        tokens: torch.Tensor = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)[
            "input_ids"
        ]
        return tokens
