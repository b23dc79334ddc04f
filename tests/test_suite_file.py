"""The promise: a user's mistake gets one sentence, with the field, the value, what was expected and what to do, before a model is loaded."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError
from core.section import Section
from core.site import Site
from core.suite import Dictionaries, Harvest, Release, Shape, Sites, Suite, Text
from core.suite_file import parse_suite
from core.training import RECIPES, Training
from flows.main import MISUSED, main

GOOD = """\
name: small
model: {source: some/model}
text: {source: installed-docs, context: 16, tokens: 4_096, held_out_tokens: 512}
sites: {layers: [1, 2], kinds: [resid_post, mlp_out]}
dictionaries: [{widths: 64, target_l0s: 8}]
training: {recipe: gemma-scope, tokens: 2_048, batch_rows: 256}
"""
SHAPE = Shape(layers=4, d_model=32, d_attn=16, parameters=1_000)
PRESETS = sorted((Path(__file__).parents[1] / "deployments" / "suites").glob("*.yaml"))


def fields(section: type[Section]) -> str:
    return ", ".join(section.model_fields)


A_NAME = "expected letters, digits, dots, dashes and underscores, beginning with a letter or digit; write for example 'gemma-3-270m-demo'"
LAYERS = "expected a list of layers such as [5, 9, 12], a range such as 5-12, or all; write for example '5-12'"
KINDS = "expected 'resid_post', 'mlp_out' or 'attn_z'; write for example 'resid_post'"
SET = "write for example --set training.tokens=100000"
INT64 = "expected a number below 9.22337e+18"

FIELDS = {  # a field, as --set gives it: the sentence
    "name=my/suite": f"name is 'my/suite'; {A_NAME}",
    "name=..": f"name is '..'; {A_NAME}",
    "name=''": f"name is empty; {A_NAME}",
    'name="x\\n"': f"name is 'x\\n'; {A_NAME}",
    "name=": "name is empty; expected text; write for example 'gemma-3-270m-demo'",
    "name=7": "name is 7; expected text; write for example 'gemma-3-270m-demo'",
    "name=harvests": "name is 'harvests'; expected a name that the store does not use itself; choose another",
    "name=Prefect": "name is 'Prefect'; expected a name that the store does not use itself; choose another",
    f"name={'x' * 101}": f"name is '{'x' * 56}...; expected at most 100 characters; write for example 'gemma-3-270m-demo'",
    "training.learning_rat=1": f"training.learning_rat is 1; expected one of the fields {fields(Training)}; did you mean learning_rate?",
    "training.learning-rate=1": f"training.learning-rate is 1; expected one of the fields {fields(Training)}; did you mean learning_rate?",
    "text.zzz=1": f"text.zzz is 1; expected one of the fields {fields(Text)}; remove it",
    "text.text=body": f"text.text is 'body'; expected one of the fields {fields(Text)}; did you mean context?",
    "trainin.tokens=1": f"trainin is {{tokens: 1}}; expected one of the fields {fields(Suite)}; did you mean training?",
    "zzz=": f"zzz is empty; expected one of the fields {fields(Suite)}; remove it",
    "4=5": f"4 is 5; expected one of the fields {fields(Suite)}; remove it",
    "text=3": f"text is 3; expected a section with the fields {fields(Text)}; write them indented below text:",
    "sites=[1]": f"sites is [1]; expected a section with the fields {fields(Sites)}; write them indented below sites:",
    "harvest=": f"harvest is empty; expected a section with the fields {fields(Harvest)}; write them indented below harvest:, or remove it",
    "release=no": f"release is 'no'; expected a section with the fields {fields(Release)}; write them indented below release:, or remove it",
    "model.source=''": "model.source is empty; expected some text; write for example 'google/gemma-3-270m'",
    "model.dtype=fp16": "model.dtype is 'fp16'; expected 'bfloat16' or 'float32'; write for example 'bfloat16'",
    "model.shape={layers: 3, d_model: 8, d_attn: 8}": "model.shape.parameters is missing; expected a value; write for example 2_024_515_584",
    "text.context=1": "text.context is 1; expected a number of at least 2; write for example 1024",
    "text.tokens=0": "text.tokens is 0; expected a number greater than 0; write for example 1_000_000",
    "text.tokens=": "text.tokens is empty; expected a whole number; write for example 1_000_000",
    "text.tokens=9": "text.tokens is 9; expected at least one sequence of 16 tokens; raise text.tokens or lower text.context",
    "text.tokens=250": "text.tokens is 250; expected at least one training batch of 256 rows besides the BOS of each sequence; "
    "raise text.tokens or lower training.batch_rows",
    "text.held_out_tokens=9": "text.held_out_tokens is 9; expected at least one sequence of 16 tokens; "
    "raise text.held_out_tokens or lower text.context",
    "text.seed=-1": "text.seed is -1; expected a number of at least 0; write for example 0",
    f"text.seed={2**63}": f"text.seed is 9_223_372_036_854_775_808; {INT64}; write for example 0",
    "harvest.block_sequences=24": "harvest.block_sequences is 24; expected a multiple of 16; write for example 64",
    "harvest.dtype=int8": "harvest.dtype is 'int8'; expected 'bfloat16' or 'float32'; write for example 'bfloat16'",
    "sites.layers=12-5": f"sites.layers is '12-5'; {LAYERS}",
    "sites.layers=x": f"sites.layers is 'x'; {LAYERS}",
    "sites.layers=[-1]": f"sites.layers is [-1]; {LAYERS}",
    "sites.layers=[]": f"sites.layers is []; {LAYERS}",
    "sites.layers=[1, true]": f"sites.layers is [1, 'true']; {LAYERS}",
    "sites.layers=[1.5]": f"sites.layers is [1.5]; {LAYERS}",
    "sites.layers=5:12": f"sites.layers is '5:12'; {LAYERS}",
    "sites.layers=0-99999999999": f"sites.layers is '0-99999999999'; {LAYERS}",
    "sites.layers=": f"sites.layers is empty; {LAYERS}",
    "sites.layers=[1, 2, 1]": "sites.layers is [1, 2, 1]; expected each one once; remove the repeated entry",
    "sites.layers=[2, 26]": "sites.layers asks for layer 26; expected layers 0 to 3, for the model has 4; correct sites.layers",
    "sites.layers=2-26": "sites.layers asks for layer 4; expected layers 0 to 3, for the model has 4; correct sites.layers",
    "sites.kinds=[resid_pre]": f"sites.kinds[0] is 'resid_pre'; {KINDS}",
    "sites.kinds=3": f"sites.kinds[0] is 3; {KINDS}",
    "sites.kinds=[]": "sites.kinds is []; expected at least 1 entry; write for example ['resid_post']",
    "sites.kinds=[mlp_out, mlp_out]": "sites.kinds is ['mlp_out', 'mlp_out']; expected each one once; remove the repeated entry",
    "dictionaries=[]": "dictionaries is []; expected at least 1 entry; write for example [{widths: [16_384], target_l0s: [50]}]",
    "dictionaries={widths: 64}": "dictionaries is {widths: 64}; expected a list; write for example [{widths: [16_384], target_l0s: [50]}]",
    "dictionaries=[64]": f"dictionaries[0] is 64; expected a section with the fields {fields(Dictionaries)}; "
    "write for example {widths: [16_384], target_l0s: [50]}",
    "training.tokens=255": "training.tokens is 255; expected at least one batch of 256 rows; raise training.tokens or lower training.batch_rows",
    "training.tokens=1.5": "training.tokens is 1.5; expected a whole number; write for example 4_000_000_000",
    "training.tokens=true": "training.tokens is 'true'; expected a whole number; write for example 4_000_000_000",
    "training.tokens=4k": "training.tokens is '4k'; expected a whole number; write for example 4_000_000_000",
    "training.tokens=4,096": "training.tokens is '4,096'; expected a whole number; write for example 4_000_000_000",
    "training.tokens=1e30": "training.tokens is 1e+30; expected a whole number of fewer digits; write for example 4_000_000_000",
    "training.tokens=.inf": "training.tokens is inf; expected a finite number; write for example 4_000_000_000",
    f"training.tokens={'9' * 5_000}": f"training.tokens is '{'9' * 56}...; expected a whole number of fewer digits; write for example 4_000_000_000",
    "training.recipe=gemma-scope-3": (
        "training.recipe is 'gemma-scope-3'; expected 'gemma-scope', 'gemma-scope-2', 'anthropic-2025' or 'short-run'; "
        "write for example 'gemma-scope'"
    ),
    "training.recipe=[1]": "training.recipe is [1]; expected 'gemma-scope', 'gemma-scope-2', 'anthropic-2025' or 'short-run'; "
    "write for example 'gemma-scope'",
    "training.learning_rate=.nan": "training.learning_rate is nan; expected a finite number; write for example 7e-05",
    "training.learning_rate=-.inf": "training.learning_rate is -inf; expected a finite number; write for example 7e-05",
    "training.learning_rate=yes": "training.learning_rate is 'yes'; expected a number; write for example 7e-05",
    "training.learning_rate=[7e-5]": "training.learning_rate is [7e-05]; expected a number; write for example 7e-05",
    "training.learning_rate_decay=1.5": "training.learning_rate_decay is 1.5; expected a number of at most 1; write for example 0.2",
    "training.adam_beta2=1": "training.adam_beta2 is 1; expected a number below 1; write for example 0.999",
    "training.max_norm=1": "training.max_norm is 1; expected a number greater than 1; write for example 10",
    "training.inputs=normed": "training.inputs is 'normed'; expected 'scaled', 'centred' or 'scaled-to-d'; write for example 'scaled'",
    "evaluation.loss_sequences=33": "evaluation.loss_sequences is 33; expected at most the 32 held-out sequences; "
    "raise text.held_out_tokens or lower it",
    "training.tokens": f"--set is 'training.tokens'; expected section.field=value; {SET}",
    "=3": f"--set is '=3'; expected section.field=value; {SET}",
    "training..tokens=3": f"--set is 'training..tokens=3'; expected section.field=value; {SET}",
    "name.short=x": f"--set is 'name.short=x'; expected a field of a section, and 'name' is none; {SET}",
    "dictionaries.0.widths=9": f"--set is 'dictionaries.0.widths=9'; expected a field of a section, and 'dictionaries.0' is none; {SET}",
    "training.tokens=[": "--set training.tokens is not plain YAML at line 1 (expected the node content, but found '<stream end>'); "
    "expected lines such as name: my-suite; correct that line",
}

GRIDS = {  # an entry of dictionaries: the sentence, which begins with dictionaries[0]
    "widths: 0, target_l0s: 8": ".widths[0] is 0; expected a number greater than 0; write for example 16_384",
    "widths: [64, -4], target_l0s: 8": ".widths[1] is -4; expected a number greater than 0; write for example 16_384",
    "widths: wide, target_l0s: 8": ".widths[0] is 'wide'; expected a whole number; write for example 16_384",
    "widths: true, target_l0s: 8": ".widths[0] is 'true'; expected a whole number; write for example 16_384",
    "widths: [], target_l0s: 8": ".widths is []; expected at least 1 entry; write for example [16_384]",
    "widths: , target_l0s: 8": ".widths is empty; expected a list; write for example [16_384]",
    "widths: 99999999999999999999, target_l0s: 8": f".widths is 99_999_999_999_999_999_999; {INT64}; write for example [16_384]",
    "target_l0s: 8": ".widths is missing; expected a value; write for example [16_384]",
    "widths: 64": ".target_l0s is missing; expected target_l0s or l0_coefficients; write for example target_l0s: [50]",
    "widths: 64, target_l0s: []": ".target_l0s is missing; expected target_l0s or l0_coefficients; write for example target_l0s: [50]",
    "widths: 64, target_l0s: 8, l0_coefficients: 0.5": ".target_l0s is [8], and l0_coefficients is [0.5]; expected one of the two; remove the other",
    "widths: 64, target_l0s: [8, 64]": ".target_l0s has 64; expected fewer active latents than the width of 64; lower the target or raise the width",
    "widths: 64, target_l0s: 0": ".target_l0s[0] is 0; expected a number greater than 0; write for example 50",
    "widths: 64, target_l0s: .nan": ".target_l0s[0] is nan; expected a finite number; write for example 50",
    "widths: 64, l0_coefficients: -1": ".l0_coefficients[0] is -1; expected a number greater than 0; write for example 0.0006",
    "widths: 64, target_l0: 8": f".target_l0 is 8; expected one of the fields {fields(Dictionaries)}; did you mean target_l0s?",
    "widths: 64, target_l0s: 8, seeds: [0, -1]": ".seeds[1] is -1; expected a number of at least 0; write for example 0",
    "widths: 64, target_l0s: 8, tokens: 255": ".tokens is 255; expected at least one batch of 256 rows; raise it or lower training.batch_rows",
    "widths: 64, target_l0s: 8, architecture: top-k": ".architecture is 'top-k'; expected 'jumprelu', 'relu-l1', 'gated', 'topk' or 'batch-topk'; "
    "write for example 'jumprelu'",
    "widths: 64, target_l0s: 8.5, architecture: topk": ".target_l0s has 8.5; expected a whole number, for topk keeps a number of latents; round it",
    "widths: 64, l0_coefficients: 1e-3, architecture: batch-topk": ".l0_coefficients is [0.001]; expected target_l0s, for batch-topk keeps a number "
    "of latents; write for example target_l0s: [50]",
    "widths: 64, target_l0s: 8, sites: 'L9.*'": ".sites is 'L9.*'; expected a pattern that names one of L01.resid_post to L02.mlp_out; "
    "write for example 'L09.*' or remove it",
}

FILES = {  # the text of a file: the sentence
    "": "the suite file is empty; expected the fields of a suite; begin with name: my-suite",
    "# a comment\n": "the suite file is empty; expected the fields of a suite; begin with name: my-suite",
    "- a\n- b\n": "the suite file is ['a', 'b']; expected the fields of a suite; begin with name: my-suite",
    "just a text": "the suite file is 'just a text'; expected the fields of a suite; begin with name: my-suite",
    "[" * 5_000: "the suite file is nested too deeply; expected sections of fields; remove some brackets",
    GOOD + "name: again\n": "name is given twice (lines 1 and 7); expected each field once; remove one of them",
    GOOD + "harvest: {shuffle_seed: 1, shuffle_seed: 2}\n": "shuffle_seed is given twice (line 7); expected each field once; remove one of them",
    GOOD.replace("name: small\n", ""): "name is missing; expected a value; write for example 'gemma-3-270m-demo'",
    GOOD.replace("layers: [1, 2], ", ""): "sites.layers is missing; expected a value; write for example '5-12'",
    GOOD.replace("tokens: 2_048, ", ""): "training.tokens is missing; expected a value; write for example 4_000_000_000",
    GOOD.replace("sites: {layers: [1, 2], kinds: [resid_post, mlp_out]}\n", ""): f"sites is missing; expected a section with the fields "
    f"{fields(Sites)}; write them indented below sites:",
    GOOD.replace("sites:", "sties:"): f"sties is {{layers: [1, 2], kinds: ['resid_post', 'mlp_out']}}; expected one of the fields {fields(Suite)}; "
    "did you mean sites?",
}

UNREADABLE = {  # the text of a file: where and why it is not plain YAML
    "name: [unbalanced\n": "at line 2 (expected ',' or ']', but got '<stream end>')",
    "name: 'unbalanced\n": "at line 2 (found unexpected end of stream)",
    "text:\n\tcontext: 4\n": r"at line 2 (found character '\t' that cannot start any token)",
    "name: a: b\n": "at line 1 (mapping values are not allowed here)",
    "name: a\n---\nname: b\n": "at line 2 (but found another document)",
    "[a, b]: c\n": "at line 1 (a field whose name is not text)",
    "name: x\nmodel: !!python/object:os.system {}\n": "at line 2 (the tag '!!python/object:os.system' is not read)",
    "!!python/object/apply:os.system ['true']": "at line 1 (the tag '!!python/object/apply:os.system' is not read)",
    "name: !!int x\n": "at line 1 (the tag '!!int' is not read)",
    "name: &a [*a]\n": "at line 1 (the alias *a is not read)",
}


def complaint(text: str, *set_fields: str) -> str:
    """What is said about a bad suite: by reading it, or by what only the shape of the model can tell."""
    with pytest.raises(ConfigError) as raised:
        parse_suite(text, list(set_fields)).sites_of(SHAPE)
    return str(raised.value)


@pytest.mark.parametrize(("setting", "sentence"), FIELDS.items(), ids=lambda text: text[:40])
def test_a_bad_field_gets_one_sentence(setting: str, sentence: str) -> None:
    assert complaint(GOOD, setting) == sentence


@pytest.mark.parametrize(("grid", "sentence"), GRIDS.items())
def test_a_bad_dictionary_gets_one_sentence(grid: str, sentence: str) -> None:
    assert complaint(GOOD.replace("widths: 64, target_l0s: 8", grid)) == f"dictionaries[0]{sentence}"


CONTROL = (
    "training.l0_control is 0; expected more, for dictionaries[0] has target_l0s whose coefficient control must find; "
    "write training.l0_control: 0.01, or give l0_coefficients instead"
)
SHARDS = (
    "training.shards is 2; expected 1 for all but jumprelu dictionaries with the l0 objective and no matryoshka_prefixes, "
    "and dictionaries[0] asks for others; set training.shards to 1"
)


@pytest.mark.parametrize(
    ("grid", "settings", "sentence"),
    [
        ("architecture: gated, target_l0s: 8", [], CONTROL),
        ("architecture: relu-l1, target_l0s: 8", [], CONTROL),
        ("target_l0s: 8", ["training.objective=tanh"], CONTROL),
        ("architecture: topk, target_l0s: 8", ["training.shards=2"], SHARDS),
        ("l0_coefficients: 8", ["training.objective=tanh", "training.matryoshka_prefixes=[0.5]"], "leave them out or set training.objective to l0"),
        ("target_l0s: 8", ["training.shards=2", "training.matryoshka_prefixes=[0.5]"], SHARDS),
    ],
)
def test_what_a_dictionary_and_its_training_cannot_do_together_gets_one_sentence(grid: str, settings: list[str], sentence: str) -> None:
    assert complaint(GOOD.replace("target_l0s: 8", grid), *settings).endswith(sentence)


@pytest.mark.parametrize(("text", "sentence"), FILES.items(), ids=lambda text: text[-40:])
def test_a_bad_file_gets_one_sentence(text: str, sentence: str) -> None:
    assert complaint(text) == sentence


@pytest.mark.parametrize(("text", "why"), UNREADABLE.items())
def test_a_file_that_is_not_plain_yaml_is_answered_with_the_line(text: str, why: str) -> None:
    assert complaint(text) == f"the suite file is not plain YAML {why}; expected lines such as name: my-suite; correct that line"


def test_a_file_with_control_characters_is_answered_too() -> None:
    reason = "special characters are not allowed"
    assert complaint("name: \x00") == f"the suite file is not plain YAML ({reason}); expected lines such as name: my-suite; save it as plain text"


def test_two_mistakes_get_two_sentences() -> None:
    assert complaint(GOOD, "name=a/b", "text.tokens=0").splitlines() == [FIELDS["name=my/suite"].replace("my/suite", "a/b"), FIELDS["text.tokens=0"]]


def test_a_dictionary_declared_twice_is_named() -> None:
    for twice in ("[{widths: [64, 64], target_l0s: 8}]", "[{widths: 64, target_l0s: 8}, {widths: 64, target_l0s: 8.0, sites: L01.resid_post}]"):
        assert complaint(GOOD, f"dictionaries={twice}") == (
            "dictionaries declares L01.resid_post width_64_l0_8 twice; expected each one once; remove one of them"
        )


def test_a_site_without_a_dictionary_is_named() -> None:
    assert complaint(GOOD, "dictionaries=[{widths: 64, target_l0s: 8, sites: 'L01.*'}]") == (
        "dictionaries has none for the site L02.resid_post; expected at least one; widen dictionaries.sites or leave L02.resid_post out of sites"
    )


def test_every_field_has_an_example_to_offer() -> None:
    def sections(section: type[Section]) -> list[type[Section]]:
        inner = [info.annotation for info in section.model_fields.values()]
        return [section, *(found for kind in inner if isinstance(kind, type) and issubclass(kind, Section) for found in sections(kind))]

    without = {
        name
        for section in [*sections(Suite), Dictionaries, Shape]
        for name, info in section.model_fields.items()
        if not info.examples and not (isinstance(info.annotation, type) and issubclass(info.annotation, Section))
    }
    assert without == {"shape"}


# Whatever is in the file

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["all", "5-12", "gemma-scope", "L0*", "~", "''"])
)
NAMES = st.sampled_from([name for section in (Suite, Text, Sites, Dictionaries, Training) for name in section.model_fields]) | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6)
PATHS = st.sampled_from(
    [f"{section}.{name}" for section, kind in Suite.model_fields.items() for name in getattr(kind.annotation, "model_fields", [""])]
)


def flow(value: Any) -> str:
    """Careless YAML: what a program that knows little of it would write."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(inner)}" for key, inner in value.items()) + "}"
    return "[" + ", ".join(map(flow, value)) + "]" if isinstance(value, list) else str(value)


def assert_suite_or_sentences(text: str, *set_fields: str) -> None:
    try:
        suite = parse_suite(text, list(set_fields))
        suite.sites_of(SHAPE)
    except ConfigError as error:
        for line in str(error).splitlines():
            assert line.count(";") >= 2, line
            assert "nput should" not in line, f"pydantic's own words: {line}"


@given(path=PATHS, value=VALUES)
def test_any_value_in_any_field_gives_a_suite_or_sentences(path: str, value: Any) -> None:
    assert_suite_or_sentences(GOOD, f"{path.rstrip('.')}={flow(value)}")


@given(text=st.text(max_size=40) | st.text("{}[]:,-?!&*<>|%@`'\"#~ \n\tab0.e", max_size=40) | VALUES.map(flow))
def test_any_text_at_all_gives_a_suite_or_sentences(text: str) -> None:
    assert_suite_or_sentences(text)


@given(start=st.integers(0, len(GOOD)), length=st.integers(0, 12), insert=st.text(max_size=4))
def test_a_good_file_with_a_piece_cut_and_another_put_in_gives_a_suite_or_sentences(start: int, length: int, insert: str) -> None:
    assert_suite_or_sentences(GOOD[:start] + insert + GOOD[start + length :])


# From the command line


@pytest.mark.parametrize("command", ["plan", "run", "status", "report", "release"])
@pytest.mark.parametrize("fault", ["missing", "a folder", "binary", "bad", "badly set"])
def test_every_command_answers_a_bad_suite_with_a_sentence_and_writes_nothing(
    command: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, store, extra = tmp_path / "suite.yaml", tmp_path / "store", ["--set", "training.tokens=few"] if fault == "badly set" else []
    if fault == "a folder":
        file.mkdir()
    elif fault != "missing":
        file.write_bytes({"binary": b"\x80\x04\xff\x00", "bad": GOOD.replace("64", "0").encode(), "badly set": GOOD.encode()}[fault])
    before = sorted(tmp_path.iterdir())
    assert main([command, str(file), "--store", str(store), *extra]) == MISUSED
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("jumpsuite: ")
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("command", "sentence"),
    [("plan", "jumpsuite: dictionaries[0].widths[0] is 0; expected "), ("verify", "jumpsuite: RELEASE is '{}', which is not a folder; expected ")],
)
def test_a_mistake_is_answered_before_anything_heavy_is_loaded(command: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(GOOD.replace("64", "0"))
    without = "import sys; sys.modules.update(dict.fromkeys(['torch', 'numpy', 'transformers', 'prefect'])); from flows.main import entry; entry()"
    said = subprocess.run([sys.executable, "-c", without, command, file], capture_output=True, text=True, timeout=300, check=False)
    assert (said.returncode, said.stdout) == (MISUSED, "")
    assert said.stderr.startswith(sentence.format(file))


# What is right


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_a_suite_and_survives_a_trip_through_json(preset: Path) -> None:
    suite = parse_suite(preset.read_text(encoding="utf-8"))
    assert suite.name == preset.stem
    assert Suite.model_validate_json(suite.model_dump_json()) == suite


def test_a_suite_is_written_alike_before_and_after_a_trip_through_json() -> None:
    """As a server gives it to workers: where 100 became 100.0, the same release had other bytes."""
    suite = parse_suite(GOOD, ["explanations={endpoint: {address: 'http://127.0.0.1/v1', model: m, max_tokens: 9}}"])
    travelled = Suite.model_validate_json(suite.model_dump_json())
    assert yaml.safe_dump(travelled.model_dump()) == yaml.safe_dump(suite.model_dump())


def test_numbers_are_read_as_people_write_them() -> None:
    suite = parse_suite(
        GOOD, ["training.learning_rate=7e-5", "training.tokens=4_000_000_000", "text.tokens=1e6", "dictionaries=[{widths: 8, l0_coefficients: 6E-4}]"]
    )
    assert (suite.training.learning_rate, suite.training.tokens, suite.text.tokens) == (7e-5, 4_000_000_000, 1_000_000)
    assert (suite.dictionaries[0].widths, suite.dictionaries[0].l0_coefficients) == ([8], [6e-4])


@pytest.mark.parametrize("word", ["no", "on", "2024-01-01", "1:30", "0x1f", "=", "<<"])
def test_words_that_yaml_takes_for_something_else_stay_words(word: str) -> None:
    assert parse_suite(GOOD, [f"text.subset={word}"]).text.subset == word


def test_one_value_may_stand_for_a_list() -> None:
    suite = parse_suite(GOOD, ["sites.layers=3", "sites.kinds=attn_z", "dictionaries=[{widths: 64, target_l0s: 8, seeds: 1}]"])
    assert [spec.name for spec in suite.sites_of(SHAPE)[Site(3, "attn_z")]] == ["width_64_l0_8_seed_1"]


@pytest.mark.parametrize(("layers", "expected"), [("all", [0, 1, 2, 3]), ("1-2", [1, 2]), ("0 - 0", [0]), ("[3, 1]", [1, 3])])
def test_layers_are_a_list_a_range_or_all(layers: str, expected: list[int]) -> None:
    assert sorted({site.layer for site in parse_suite(GOOD, [f"sites.layers={layers}"]).sites_of(SHAPE)}) == expected


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_fills_in_what_the_file_does_not_say(recipe: str) -> None:
    training = parse_suite(GOOD.replace("target_l0s: 8", "l0_coefficients: 8"), [f"training.recipe={recipe}", "training.adam_epsilon=1e-6"]).training
    said = {"adam_epsilon": 1e-6, "batch_rows": 256}
    assert training.model_dump(include=set(RECIPES[recipe])) == RECIPES[recipe] | said


@pytest.mark.parametrize(
    ("tokens", "recipe"), [(1_000_000, "short-run"), ("1e6", "short-run"), (20_000_000, "short-run"), (20_000_001, "gemma-scope")]
)
def test_a_short_run_that_names_no_recipe_gets_the_one_for_short_runs(tokens: int | str, recipe: str) -> None:
    training = parse_suite(GOOD.replace("recipe: gemma-scope, ", ""), [f"training.tokens={tokens}"]).training
    assert training.recipe == recipe
    assert training.adam_beta2 == RECIPES[recipe]["adam_beta2"]


@pytest.mark.parametrize(("tokens", "rate"), [(4_096, 4e-3), ("1e6", 4e-3), (4_000_000, 2e-3), (16_000_000, 1e-3), (100_000_000, 4e-4)])
def test_the_learning_rate_of_a_short_run_falls_with_the_root_of_its_tokens(tokens: int | str, rate: float) -> None:
    good = GOOD.replace("recipe: gemma-scope", "recipe: short-run")
    assert parse_suite(good, [f"training.tokens={tokens}"]).training.learning_rate == rate
    assert parse_suite(good, [f"training.tokens={tokens}", "training.learning_rate=3e-3"]).training.learning_rate == 3e-3


def keys(*set_fields: str) -> tuple[str, str]:
    """Of the harvest and of its first dictionary."""
    suite = parse_suite(GOOD, list(set_fields))
    harvest = suite.harvest_key("a model", "a text")
    return harvest, suite.dictionary_key(harvest, next(iter(suite.sites_of(SHAPE).values()))[0])


@pytest.mark.parametrize(
    "same",
    ["training.checkpoint_steps=7", "device=cuda", "name=other", "evaluation.loss_sequences=2", "release.title=T",
     "sites.layers=1-3", "sites.kinds=[resid_post, attn_z]", "training.learning_rate=0.00007"],
)  # fmt: skip
def test_what_changes_no_result_changes_no_key(same: str) -> None:
    assert keys(same) == keys()


@pytest.mark.parametrize(
    "other",
    ["training.learning_rate=1e-4", "training.batch_rows=128", "training.tokens=4096", "training.order_seed=1", "training.recipe=gemma-scope-2",
     "dictionaries=[{widths: 64, target_l0s: 9}]", "dictionaries=[{widths: 64, target_l0s: 8, seeds: 1}]"],
)  # fmt: skip
def test_what_changes_a_dictionary_changes_its_key_and_not_the_harvests(other: str) -> None:
    assert keys(other)[0] == keys()[0]
    assert keys(other)[1] != keys()[1]


@pytest.mark.parametrize(
    "other", ["text.context=32", "text.seed=1", "text.tokens=8192", "harvest.shuffle_seed=1", "harvest.dtype=float32", "model.dtype=float32"]
)
def test_what_changes_the_rows_changes_both_keys(other: str) -> None:
    assert keys(other)[0] != keys()[0]
    assert keys(other)[1] != keys()[1]
