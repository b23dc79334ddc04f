"""A language model over HTTP: planted meanings come out, each thing is asked once, no token too many is spent, and what is malformed is unscored."""

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import ChatServer, reader
from test_token_rules import BANK, N, W, text
from transformers import AutoTokenizer

from core.asking import LanguageModel
from core.errors import ConfigError, JumpsuiteError
from core.interpretability import Contexts, Scores, examine
from core.prompts import Malformed, Prompt, read_explanation, read_numbers, to_detect, to_explain, to_recognise, to_simulate
from core.suite import Endpoint, Suite
from storage.catalogue import Catalogue
from storage.endpoint import ChatEndpoint, Usage
from storage.local_model import LocalModel
from storage.objects import Store
from tasks.asking import Asker, asking


@pytest.fixture
def server() -> Iterator[ChatServer]:
    served = ChatServer()
    served.start()
    yield served
    served.stop()


def asker(server: ChatServer, where: Path, **settings: object) -> Asker:
    endpoint = Endpoint.model_validate({"address": server.address, "model": "reader", "max_tokens": 10**7} | settings)
    return Asker(Store(where), ChatEndpoint(endpoint), "spent/tokens.json")


def spell(token: int) -> str:
    return f" word{token:02d}"


def contexts(seed: int, fires: int = BANK) -> Contexts:
    tokens_NW = text(seed)
    return Contexts(tokens_NW, 3.0 * (tokens_NW == fires), np.ones((N, W), bool)).some(20, seed)


def scored(model: LanguageModel, explanation: str) -> Scores:
    return examine(model.judge(explanation), contexts(1), seed=0)


def test_a_planted_meaning_is_found_and_scores_high_with_every_scorer_and_another_like_chance(server: ChatServer, tmp_path: Path) -> None:
    model = LanguageModel(asker(server, tmp_path).ask, spell)
    said = model.explain(contexts(0))
    assert said == f'the token "{spell(BANK)}"'
    assert list(vars(scored(model, said)).values()) == pytest.approx([1, 1, 1, 1])
    other = vars(scored(model, f'the token "{spell(23)}"'))
    assert abs(other["pearson"]) < 0.15
    assert abs(other["spearman"]) < 0.15
    assert other["detection"] == pytest.approx(0.5, abs=0.15)
    assert other["fuzzing"] == pytest.approx(0.5, abs=0.15)


def test_what_was_asked_is_not_asked_again(server: ChatServer, tmp_path: Path) -> None:
    first = asker(server, tmp_path)
    before = scored(LanguageModel(first.ask, spell), 'the token "x"')
    asked = len(server.asked)
    again = asker(server, tmp_path)
    assert scored(LanguageModel(again.ask, spell), 'the token "x"') == before
    assert len(server.asked) == asked
    assert again.spent.tokens == first.spent.tokens == server.tokens


def test_a_malformed_answer_is_asked_for_once_more_and_then_unscored(server: ChatServer, tmp_path: Path) -> None:
    server.model = lambda task, said: "I think all of them." if task == "detect" else reader(task, said)
    asks = asker(server, tmp_path)
    scores = scored(LanguageModel(asks.ask, spell), f'the token "{spell(BANK)}"')
    assert scores.detection is None
    assert scores.pearson == pytest.approx(1)
    of_detection = [body for body in server.asked if "anywhere in it" in body["messages"][0]["content"]]
    assert len(of_detection) == 2 * asks.unanswered == 4
    assert {body["temperature"] for body in of_detection} == {0.0, 1.0}


def test_the_second_answer_counts_where_the_first_was_malformed(server: ChatServer, tmp_path: Path) -> None:
    answers = iter(["{", '{"explanation": "good"}'])
    server.model = lambda *_: next(answers)
    assert asker(server, tmp_path).ask(to_explain([["a"]], np.ones((1, 1)), []), read_explanation) == "good"


def test_no_more_is_spent_than_was_allowed_and_with_more_it_goes_on_from_there(server: ChatServer, tmp_path: Path) -> None:
    whole = asker(server, tmp_path / "whole")
    expected = scored(LanguageModel(whole.ask, spell), f'the token "{spell(BANK)}"')
    needed, server.tokens = server.tokens, 0
    for cap in (needed // 3, 2 * needed // 3):
        asks = asker(server, tmp_path / "capped", max_tokens=cap)
        with pytest.raises(JumpsuiteError, match="raise it and run again, which goes on from there") as stopped:
            scored(LanguageModel(asks.ask, spell), f'the token "{spell(BANK)}"')
        assert f"explanations.endpoint.max_tokens is {cap:,}, of which {asks.spent.tokens:,} are spent" in str(stopped.value)
        assert 0 < server.tokens == asks.spent.tokens <= cap
    asks = asker(server, tmp_path / "capped")
    assert scored(LanguageModel(asks.ask, spell), f'the token "{spell(BANK)}"') == expected
    assert server.tokens == needed == asks.spent.tokens


def test_no_more_money_is_spent_than_was_allowed(server: ChatServer, tmp_path: Path) -> None:
    price = {"prompt": 2.0, "answer": 10.0}
    asks = asker(server, tmp_path, price=price, max_cost=0.01)

    def ask_on() -> None:
        for number in range(10**3):
            asks.ask(to_detect('the token "x"', [[f"excerpt {number}"]]), lambda answer: answer)

    with pytest.raises(JumpsuiteError, match=r"explanations.endpoint.max_cost is 0.01, of which 0.00\d+ are spent") as stopped:
        ask_on()
    assert "raise it and run again" in str(stopped.value)
    assert asks.spent == Usage(server.prompt_tokens, server.tokens - server.prompt_tokens)
    assert 0.006 < (server.prompt_tokens * 2 + (server.tokens - server.prompt_tokens) * 10) / 1e6 <= 0.01
    assert asker(server, tmp_path, price=price, max_cost=0.01).spent == asks.spent, "the account is kept"


def test_who_asks_for_the_same_suite_waits_until_the_other_has_ended(
    tiny_suite: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    endpoint = {"address": "http://127.0.0.1:9/v1", "model": "reader", "max_tokens": 10}
    suite, said = Suite.model_validate(tiny_suite | {"explanations": {"endpoint": endpoint}}), list[str]()

    def second() -> None:
        with asking(Catalogue(suite, tmp_path)):
            said.append("second")

    with asking(Catalogue(suite, tmp_path)):
        other = threading.Thread(target=second)
        other.start()
        time.sleep(3)
        said.append("first")
    other.join()
    assert said == ["first", "second"]
    assert sum(record.message.startswith("Waiting: ") for record in caplog.records) == 1


def test_an_account_of_an_earlier_version_goes_on(server: ChatServer, tmp_path: Path) -> None:
    Store(tmp_path).put_record("spent/tokens.json", {"tokens": 70})
    assert asker(server, tmp_path).spent.tokens == 70


def test_of_many_threads_none_spends_what_another_has_set_aside(server: ChatServer, tmp_path: Path) -> None:
    asks, said = asker(server, tmp_path, max_tokens=3_000), []

    def ask(number: int) -> None:
        try:
            asks.ask(to_detect('the token "x"', [[f"excerpt {number}"]]), lambda answer: answer)
        except JumpsuiteError as error:
            said.append(str(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said, "the cap was reached"
    assert server.tokens == asks.spent.tokens <= 3_000
    assert 3_000 - server.tokens < 1_500, "as near as the next request might have cost"


def test_a_server_that_is_away_for_a_while_is_waited_for(server: ChatServer, tmp_path: Path) -> None:
    server.stop()
    again = threading.Timer(2, server.start)
    again.start()
    assert asker(server, tmp_path).ask(to_detect('the token "x"', [["y"]]), lambda answer: answer) == '{"active": [0]}'


def test_an_answer_that_was_lost_on_its_way_counts_for_as_much_as_it_may_have_cost(server: ChatServer, tmp_path: Path) -> None:
    server.faults, asks = [(0, None)], asker(server, tmp_path)
    prompt = to_detect('the token "x"', [["y"]])
    assert asks.ask(prompt, lambda answer: answer) == '{"active": [0]}'
    assert asks.spent.tokens == server.tokens + sum(len(message["content"].encode()) for message in prompt.messages) + 128 + prompt.answer_tokens


def test_a_server_that_is_busy_is_asked_again_when_it_says(server: ChatServer, tmp_path: Path) -> None:
    server.faults = [(429, "1.5"), (503, None), (500, None)]
    began = time.monotonic()
    asks = asker(server, tmp_path)
    assert asks.ask(to_detect('the token "x"', [["y"]]), lambda answer: answer) == '{"active": [0]}'
    assert time.monotonic() - began > 1.5
    assert asks.spent.tokens == server.tokens


@pytest.mark.parametrize(("code", "hint"), [(401, "set JUMPSUITE_API_KEY"), (404, "correct explanations.endpoint")])
def test_a_server_that_refuses_is_named_at_once_and_nothing_is_counted(server: ChatServer, tmp_path: Path, code: int, hint: str) -> None:
    server.faults, asks = [(code, None)], asker(server, tmp_path)
    with pytest.raises(JumpsuiteError, match=hint) as refused:
        asks.ask(to_detect('the token "x"', [["y"]]), lambda answer: answer)
    assert f"explanations.endpoint.address is '{server.address}'" in str(refused.value)
    assert asks.spent.tokens == 0


def test_the_key_is_sent_and_kept_nowhere(server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUMPSUITE_API_KEY", "a-secret-key")
    asker(server, tmp_path).ask(to_detect('the token "x"', [["y"]]), lambda answer: answer)
    assert server.keys == ["Bearer a-secret-key"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"a-secret-key" in path.read_bytes()]


# A model in this process


def test_a_template_that_knows_no_system_is_told_by_the_user(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refuses + "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    model = LocalModel(Store(tmp_path / "store"), Endpoint(address="local", model=str(folder), max_tokens=10), torch.device("cpu"))
    prompt = to_detect('the token "x"', [["y"]])
    said = f"user: {prompt.system}\n\n{prompt.user}"
    assert model.most(model.request(prompt, 0)).prompt == len(tokenizer(said, add_special_tokens=False)["input_ids"])


def test_a_local_model_is_asked_as_a_server_is_and_counts_its_own_tokens(tiny_model: Path, tmp_path: Path) -> None:
    """A small random model says nothing that could be read: two attempts, which are two answers, and what is asked again costs nothing."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
    tokenizer.save_pretrained(folder)
    endpoint = Endpoint(address="local", model=str(folder), max_tokens=100_000)
    prompt, read = to_detect('the token "x"', [["y"]]), list[str]()

    def refuse(answer: str) -> None:
        read.append(answer)
        raise Malformed("no")

    model = LocalModel(Store(tmp_path / "store"), endpoint, torch.device("cpu"))
    asks = Asker(Store(tmp_path / "store"), model, "spent/tokens.json")
    assert asks.ask(prompt, refuse) is None
    question = "<bos>" + "".join(f"{message['role']}: {message['content']}\n" for message in prompt.messages) + "assistant:"
    expected = len(tokenizer(question, add_special_tokens=False)["input_ids"])
    assert asks.spent.prompt == 2 * expected
    assert 2 <= asks.spent.answer <= 2 * prompt.answer_tokens
    again = Asker(Store(tmp_path / "store"), LocalModel(Store(tmp_path / "store"), endpoint, torch.device("cpu")), "spent/tokens.json")
    assert again.ask(prompt, refuse) is None
    assert again.spent == asks.spent
    assert read[:2] == read[2:]
    assert read[0] != read[1]


def test_a_local_model_that_cannot_answer_is_named(tiny_model: Path, tmp_path: Path) -> None:
    for model, wrong in ((str(tiny_model), "has no chat template"), (str(tmp_path / "none.gguf"), "is not there")):
        with pytest.raises(ConfigError, match=f"explanations.endpoint.model is '{model}', which {wrong}"):
            LocalModel(Store(tmp_path / "store"), Endpoint(address="local", model=model, max_tokens=10), torch.device("cpu"))


# Prompts


def test_an_excerpt_stays_on_its_line_and_shows_which_of_its_tokens_fire() -> None:
    pieces, f_W = ["the", "\nriver", " bank", "\n", '"'], np.array([0, 2.0, 4.0, 0, 0])
    prompt = to_explain([pieces], f_W[None], [["quiet\n"]])
    assert prompt.user.splitlines() == [
        'Excerpt 1: "the<<\\nriver bank>>\\n\\""',
        'Active: [["\\nriver", 5], [" bank", 10]]',
        'Not active: "quiet\\n"',
    ]
    marked = np.array([[True, False, False, False, True]])
    assert to_recognise("x", [pieces], marked).user.splitlines()[-1] == 'Excerpt 1: "<<the>>\\nriver bank\\n<<\\">>"'
    assert to_simulate("x", pieces).user.splitlines()[2:] == ['1: "the"', '2: "\\nriver"', '3: " bank"', '4: "\\n"', '5: "\\""']


PROMPT: Prompt = to_simulate("x", ["a", "b", "c"])


@pytest.mark.parametrize("answer", ['{"activations": [0, 3, 10]}', 'Sure:\n```json\n{"activations": [0, 3, 10]}\n```'])
def test_an_answer_is_read_from_between_other_words(answer: str) -> None:
    assert read_numbers(answer, PROMPT) == [0, 3, 10]


@pytest.mark.parametrize(
    "activations", [[0, 3], [0, 3, 10, 0], [0, 3, 11], [0, 3, -1], [0, 3, 1.5], [0, 3, True], [0, 3, "4"], [0, 3, None], {"1": 0}, "0, 3, 10", None]
)
def test_numbers_of_another_form_are_no_answer(activations: object) -> None:
    with pytest.raises(Malformed):
        read_numbers(json.dumps({"activations": activations}), PROMPT)


def test_a_model_that_repeats_the_question_has_not_answered_it() -> None:
    prompts = [to_explain([["a"]], np.ones((1, 1)), []), PROMPT, to_detect("x", [["a"]]), to_recognise("x", [["a"]], np.ones((1, 1), bool))]
    for prompt in prompts:
        with pytest.raises(Malformed):
            read_explanation(prompt.system) if prompt is prompts[0] else read_numbers(prompt.system, prompt)


@pytest.mark.parametrize("answer", ["", "[0, 3, 10]", "{", '{"active": [0, 3, 10]}', "{" * 100_000, '{"activations": ' + "[" * 100_000])
def test_what_is_no_json_object_with_the_field_is_no_answer(answer: str) -> None:
    with pytest.raises(Malformed):
        read_numbers(answer, PROMPT)
    with pytest.raises(Malformed):
        read_explanation(answer)
