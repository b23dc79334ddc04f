"""Where the sites are, held against what `transformers` itself says of seven families of models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from core.anatomy import Anatomy, device_of
from core.errors import ConfigError
from core.site import KINDS, Site

LAYERS, D, HEADS = 3, 32, 2
GEMMA = {"query_pre_attn_scalar": 12, "sliding_window": 4, "head_dim": 12}
WIDE = {
    "num_hidden_layers": LAYERS,
    "hidden_size": D,
    "intermediate_size": 48,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
TOKENS = torch.arange(30).reshape(3, 10) * 7 % 64


def _without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in WIDE.items() if name not in names}


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gemma2": lambda: transformers.Gemma2Config(**WIDE, **GEMMA),
    "gemma3": lambda: transformers.Gemma3TextConfig(**WIDE, **GEMMA),
    "llama": lambda: transformers.LlamaConfig(**WIDE, attention_bias=True),
    "qwen2": lambda: transformers.Qwen2Config(**WIDE),
    "qwen3": lambda: transformers.Qwen3Config(**WIDE, head_dim=20),
    "mistral": lambda: transformers.MistralConfig(**WIDE, sliding_window=4),
    "gpt2": lambda: transformers.GPT2Config(n_layer=LAYERS, n_embd=D, n_head=HEADS, n_positions=64, vocab_size=64),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_without("num_key_value_heads")),
}
FINAL_NORM = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
ATTENTION = {"gpt2": "transformer.h.{}.attn", "gpt_neox": "gpt_neox.layers.{}.attention"}
PROJECTION = {"gpt2": "c_proj", "gpt_neox": "dense"}
MLP = {"gpt2": "transformer.h.{}.mlp", "gpt_neox": "gpt_neox.layers.{}.mlp"} | dict.fromkeys(
    ("gemma2", "gemma3"), "model.layers.{}.post_feedforward_layernorm"
)
D_ATTN = {"gemma2": 24, "gemma3": 24, "qwen3": 40}
ALL_SITES = [Site(layer, kind) for layer in range(LAYERS) for kind in KINDS]


def random_model(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # so that biases, norms and every block matter
        nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


@pytest.fixture(scope="module", params=CONFIGS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str) -> Any:
    return random_model(CONFIGS[family]())


@pytest.fixture(scope="module")
def captured(model: Any) -> dict[Site, Tensor]:
    found: dict[Site, Tensor] = {}
    with Anatomy(model).capture(ALL_SITES, found.__setitem__):
        model(TOKENS, use_cache=False)
    return found


def _output_of(model: Any, name: str) -> Tensor:
    """What a module of the model gives in a plain forward pass, kept by PyTorch's own hook."""
    outputs: list[Any] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, __, output: outputs.append(output))
    model(TOKENS, use_cache=False)
    handle.remove()
    return outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]


def _num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_resid_post_is_the_hidden_state_after_its_block(family: str, model: Any, captured: dict[Site, Tensor]) -> None:
    states = model(TOKENS, output_hidden_states=True).hidden_states
    for layer in range(LAYERS - 1):
        torch.testing.assert_close(captured[Site(layer, "resid_post")], states[layer + 1], rtol=0, atol=0)
    # The last of `hidden_states` is after the final norm.
    last = model.get_submodule(FINAL_NORM.get(family, "model.norm"))(captured[Site(LAYERS - 1, "resid_post")])
    torch.testing.assert_close(last, states[-1], rtol=0, atol=0)


def test_attn_z_times_the_output_projection_is_what_attention_gives(family: str, model: Any, captured: dict[Site, Tensor]) -> None:
    for layer in range(LAYERS):
        name = ATTENTION.get(family, "model.layers.{}.self_attn").format(layer)
        projection = model.get_submodule(f"{name}.{PROJECTION.get(family, 'o_proj')}")
        W = projection.weight if family == "gpt2" else projection.weight.T
        expected = captured[Site(layer, "attn_z")] @ W + (0 if projection.bias is None else projection.bias)
        torch.testing.assert_close(_output_of(model, name), expected, rtol=1e-5, atol=1e-5)


def test_mlp_out_is_what_the_mlp_adds_to_the_residual_stream(family: str, model: Any, captured: dict[Site, Tensor]) -> None:
    for layer in range(LAYERS):
        name = MLP.get(family, "model.layers.{}.mlp").format(layer)
        torch.testing.assert_close(captured[Site(layer, "mlp_out")], _output_of(model, name), rtol=0, atol=0)
    zeroed: dict[Site, Tensor] = {}
    anatomy, site = Anatomy(model), Site(1, "mlp_out")
    with anatomy.splice(site, torch.zeros_like), anatomy.capture([Site(1, "resid_post")], zeroed.__setitem__):
        model(TOKENS, use_cache=False)
    difference = captured[Site(1, "resid_post")] - zeroed[Site(1, "resid_post")]
    torch.testing.assert_close(difference, captured[site], rtol=1e-4, atol=1e-4)


def test_a_run_to_a_layer_gives_what_the_full_pass_gives_and_runs_nothing_after_it(model: Any, captured: dict[Site, Tensor]) -> None:
    anatomy = Anatomy(model)
    ran: list[str] = []
    handles = [module.register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name, module in model.named_modules()]
    for layer in range(LAYERS):
        ran.clear()
        found: dict[Site, Tensor] = {}
        sites = [site for site in ALL_SITES if site.layer <= layer]
        with anatomy.capture(sites, found.__setitem__):
            anatomy.run_to(layer, TOKENS)
        assert set(found) == set(sites)
        assert all(torch.equal(found[site], captured[site]) for site in sites)
        stem = next(name for name, module in model.named_modules() if module is anatomy.blocks).rstrip("0123456789")
        assert {name.removeprefix(f"{stem}.").split(".")[0] for name in ran if name.startswith(f"{stem}.")} == {str(n) for n in range(layer + 1)}
        # Neither the model nor its head is called, only the trunk; and the final norm is after the last block.
        trunk = stem.split(".")[0]
        assert "" not in ran
        assert all(name.split(".")[0] == trunk for name in ran)
        after = [name for name in ran[ran.index(f"{stem}.{layer}") + 1 :] if not name.startswith(f"{stem}.{layer}.")]
        assert after == []
    for handle in handles:
        handle.remove()


def test_the_shape_is_that_of_the_weights(family: str, model: Any, captured: dict[Site, Tensor]) -> None:
    shape = Anatomy(model).shape
    assert (shape.layers, shape.d_model, shape.d_attn) == (LAYERS, D, D_ATTN.get(family, D))
    assert all(shape.width_of(site) == x.shape[-1] for site, x in captured.items())
    blocks = {"gpt2": "transformer.h.", "gpt_neox": "gpt_neox.layers."}.get(family, "model.layers.")
    assert shape.parameters == sum(weight.numel() for name, weight in model.named_parameters() if name.startswith(blocks))


def test_a_model_without_weights_has_the_same_anatomy(family: str, model: Any) -> None:
    with torch.device("meta"):
        skeleton = Anatomy(AutoModelForCausalLM.from_config(CONFIGS[family]()))
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    assert skeleton.shape == Anatomy(model).shape
    assert [skeleton.path(site) for site in ALL_SITES] == [Anatomy(model).path(site) for site in ALL_SITES]


@pytest.mark.parametrize("kind", KINDS)
def test_a_splice_replaces_its_site_and_nothing_before_it(model: Any, captured: dict[Site, Tensor], kind: Any) -> None:
    anatomy, site = Anatomy(model), Site(1, kind)
    seen: dict[Site, Tensor] = {}
    replacement = torch.randn_like(captured[site])
    with anatomy.splice(site, lambda _: replacement), anatomy.capture(ALL_SITES, seen.__setitem__):
        logits = model(TOKENS, use_cache=False).logits
    assert torch.equal(seen[site], replacement)
    assert all(torch.equal(seen[Site(0, other)], captured[Site(0, other)]) for other in KINDS)
    assert not torch.allclose(seen[Site(2, "resid_post")], captured[Site(2, "resid_post")])
    # A splice of what is there anyway changes nothing.
    with anatomy.splice(site, lambda x: x.clone()):
        same = model(TOKENS, use_cache=False).logits
    plain = model(TOKENS, use_cache=False).logits
    assert torch.equal(same, plain)
    assert not torch.allclose(logits, plain)


def test_no_hook_is_left_behind_even_after_an_error(model: Any) -> None:
    anatomy, before = Anatomy(model), _num_hooks(model)

    def fails(_: Tensor) -> Tensor:
        raise RuntimeError("the replacement failed")

    with (
        pytest.raises(RuntimeError, match="the replacement failed"),
        anatomy.splice(Site(0, "mlp_out"), fails),
        anatomy.capture(ALL_SITES, {}.__setitem__),
    ):
        model(TOKENS)
    assert _num_hooks(model) == before
    with pytest.raises(RuntimeError, match="the replacement failed"), anatomy.splice(Site(0, "mlp_out"), fails):
        anatomy.run_to(1, TOKENS)
    anatomy.run_to(1, TOKENS)
    assert _num_hooks(model) == before


@pytest.mark.parametrize(
    ("name", "kind", "path"),
    [
        ("gemma3", "resid_post", "model.layers.2.output"),
        ("gemma3", "attn_z", "model.layers.2.self_attn.o_proj.input"),
        ("gemma3", "mlp_out", "model.layers.2.post_feedforward_layernorm.output"),
        ("llama", "mlp_out", "model.layers.2.mlp.output"),
        ("gpt2", "resid_post", "transformer.h.2.output"),
        ("gpt2", "attn_z", "transformer.h.2.attn.c_proj.input"),
        ("gpt_neox", "attn_z", "gpt_neox.layers.2.attention.dense.input"),
    ],
)
def test_a_path_is_spelt_as_gemma_scope_2_spells_it(name: str, kind: Any, path: str) -> None:
    with torch.device("meta"):
        anatomy = Anatomy(AutoModelForCausalLM.from_config(CONFIGS[name]()))
    assert anatomy.path(Site(2, kind)) == path


UNREADABLE: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "bert": (
        lambda: transformers.BertConfig(**_without("num_key_value_heads"), is_decoder=True),
        "BertLMHeadModel none of layers, h was found, only embeddings, encoder",
    ),
    "mamba": (
        lambda: transformers.MambaConfig(num_hidden_layers=2, hidden_size=D, vocab_size=64, state_size=4),
        "MambaForCausalLM block 0 none of self_attn.o_proj, attn.c_proj, attention.dense was found, only norm, mixer",
    ),
    "gptj": (
        lambda: transformers.GPTJConfig(n_layer=2, n_embd=D, n_head=2, rotary_dim=4, vocab_size=64),
        "GPTJForCausalLM block 0 none of self_attn.o_proj, attn.c_proj, attention.dense was found, only ln_1, attn, mlp",
    ),
    "bloom": (
        lambda: transformers.BloomConfig(n_layer=2, hidden_size=D, n_head=2, vocab_size=64),
        "BloomForCausalLM block 0 none of self_attn.o_proj, attn.c_proj, attention.dense was found, only input_layernorm, self_attention",
    ),
    "opt": (
        lambda: transformers.OPTConfig(num_hidden_layers=2, hidden_size=D, ffn_dim=48, num_attention_heads=2, word_embed_proj_dim=D, vocab_size=64),
        "OPTForCausalLM block 0 none of self_attn.o_proj, attn.c_proj, attention.dense was found, only self_attn",
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_model_that_cannot_be_read_is_refused_with_what_was_looked_for(name: str) -> None:
    config, sentence = UNREADABLE[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config())
    with pytest.raises(ConfigError) as refused:
        Anatomy(model).shape  # noqa: B018 - asked for, not used
    assert str(refused.value).startswith(f"model.source is a model that cannot be read: in {sentence}")
    assert str(refused.value).endswith("choose another model")
    assert "\n" not in str(refused.value)


def test_a_device_that_is_not_here_is_refused() -> None:
    assert device_of("cpu") == torch.device("cpu")
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:7", "abacus", ""):
        with pytest.raises(ConfigError, match=rf"device is '{name}'; expected a device of this machine; write auto, cpu or cuda"):
            device_of(name)


def test_a_site_is_read_back_as_it_is_written() -> None:
    sites = [Site(layer, kind) for layer in (0, 9, 10, 99, 100) for kind in KINDS]
    assert [Site.parse(str(site)) for site in sites] == sites
    assert str(Site(9, "resid_post")) == "L09.resid_post"
    assert Site(9, "attn_z").matches("L09.*")
    assert not Site(9, "attn_z").matches("L1*")
    for text in ("", "L09", "L09.resid_mid", "9.resid_post", "L09.resid_post ", "L-1.resid_post", "L09.resid_post.mlp_out"):
        with pytest.raises(ValueError, match=r"is not a site; one is written L09\.resid_post"):
            Site.parse(text)
