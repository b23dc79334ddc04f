"""The harvest: what is written is what any reader of Zarr v3 finds, what is damaged is found out, and rows are what the model gave."""

import json
import random
import re
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorstore
import torch
import zarr
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.errors import ConfigError, JumpsuiteError
from core.order import TrainingOrder
from core.packing import SpecialTokens, is_held_out
from core.site import Site
from core.suite import Suite
from storage.catalogue import Catalogue
from storage.harvest import Harvest, Part
from storage.layout import PARTS
from storage.objects import Corrupt, Store
from tasks.harvest import harvest_blocks
from tasks.tokenise import tokenise
from tasks.train import Reader

SPECIAL = SpecialTokens(2, (0, 1, 2))
WIDTHS = {Site(0, "resid_post"): 6, Site(0, "attn_z"): 10}
SEQUENCES = {"train": 40, "held_out": 20}  # blocks of 16: the last of each part is not full


@pytest.fixture
def suite(tiny_suite: dict[str, Any]) -> Suite:
    text = tiny_suite["text"] | {"context": 8, "tokens": 8 * SEQUENCES["train"], "held_out_tokens": 8 * SEQUENCES["held_out"]}
    return Suite.model_validate(tiny_suite | {"text": text, "training": tiny_suite["training"] | {"batch_rows": 32, "tokens": 64}})


@pytest.fixture
def harvest(tmp_path: Path, suite: Suite) -> Harvest:
    """A harvest with tokens and with the arrays of two sites, still without activations."""
    harvest, chance = Harvest(Store(tmp_path), "key"), np.random.default_rng(0)
    harvest.lay_out(suite, WIDTHS)
    for name, sequences in SEQUENCES.items():
        part = harvest.part(name)
        for block in range(part.num_blocks):
            size = min(16, sequences - 16 * block)
            tokens = chance.integers(0, 10, (size, 8), dtype=np.int32)
            part.write_tokens(block, tokens, SPECIAL, shuffle_seed=5)
    harvest.commit_tokens({"model": "a model"})
    harvest.lay_out(suite, WIDTHS)
    return harvest


def _activations(part: Part, block: int, sites: list[Site] | None = None) -> dict[Site, Tensor]:
    generator = torch.Generator().manual_seed(block)
    widths = {site: WIDTHS[site] for site in sites or WIDTHS}
    return {site: torch.randn(len(part.rows(block)), width, generator=generator).to(torch.bfloat16) for site, width in widths.items()}


def _filled(harvest: Harvest) -> Part:
    part = harvest.part("train")
    for block in range(part.num_blocks):
        part.write_block(block, _activations(part, block))
    return harvest.part("train")


def _all_rows(part: Part, site: Site) -> Tensor:
    return torch.cat(list(part.batches(site, part.valid())))


def _bits(x: Tensor) -> npt.NDArray[np.uint16]:
    return x.contiguous().view(torch.uint16).numpy()


# Formats


def test_tensorstore_reads_the_same_bfloat16_values(harvest: Harvest) -> None:
    part = _filled(harvest)
    for site, width in WIDTHS.items():
        path = harvest.store.local(f"{harvest.prefix}/train/activations/{site}")
        array = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}).result()
        assert array.dtype.name == "bfloat16"
        assert array.shape == (part.num_blocks * part.block_rows, width)
        read = array.read().result().view(np.uint16)
        assert np.array_equal(read[part.valid()], np.concatenate([_bits(_activations(part, block)[site]) for block in range(part.num_blocks)]))
        assert not read[~part.valid()].any()


def test_zarrs_reads_the_same_bits(harvest: Harvest) -> None:
    """As uint16: its Python front takes none of NumPy's added types, and bfloat16 is one."""
    part = _filled(harvest)
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}):
        for site in WIDTHS:
            path = harvest.store.local(f"{harvest.prefix}/train/activations/{site}")
            metadata = json.loads((path / "zarr.json").read_text())
            assert metadata["data_type"] == "bfloat16"
            (path / "zarr.json").write_text(json.dumps(metadata | {"data_type": "uint16", "fill_value": 0}))
            array = zarr.open_array(path, mode="r")
            assert type(array.async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
            expected = np.concatenate([_bits(_activations(part, block)[site]) for block in range(part.num_blocks)])
            assert np.array_equal(array[:][part.valid()], expected)
            shard = path / "c/1/0"
            data = shard.read_bytes()
            shard.write_bytes(bytes([data[0] ^ 1]) + data[1:])
            with pytest.raises(RuntimeError, match="checksum"):
                array[:]


def test_every_array_is_plain_zarr_with_crc32c(harvest: Harvest) -> None:
    _filled(harvest)
    root = harvest.store.local(harvest.prefix)
    metadata = [json.loads(path.read_text()) for path in root.rglob("zarr.json")]
    arrays = [found for found in metadata if found["node_type"] == "array"]
    assert len(arrays) == len(PARTS) * (2 + 3 * len(WIDTHS))
    for array in arrays:
        assert array["zarr_format"] == 3
        assert "crc32c" in json.dumps(array["codecs"])
    group = zarr.open_group(root, mode="r")
    assert np.array_equal(group["train/tokens"][:], np.concatenate([harvest.part("train").tokens(block) for block in range(3)]))
    assert dict(group.attrs)["model"] == "a model"


def test_a_harvest_may_be_float32(tmp_path: Path, suite: Suite) -> None:
    suite = suite.model_copy(update={"harvest": suite.harvest.model_copy(update={"dtype": "float32"})})
    harvest = Harvest(Store(tmp_path / "other"), "key")
    site = Site(1, "mlp_out")
    harvest.lay_out(suite, {site: 4})
    part = harvest.part("train")
    tokens = np.full((16, 8), 9, dtype=np.int32)
    tokens[:, 0] = SPECIAL.begin
    part.write_tokens(0, tokens, SPECIAL, 0)
    x = torch.randn(16 * 7, 4)
    part.write_block(0, {site: x})
    assert torch.equal(part.read(site, list(range(16)), np.arange(len(x))), x)


# Rows


def test_rows_are_every_text_token_once_in_a_shuffled_order(harvest: Harvest) -> None:
    for name in PARTS:
        part = harvest.part(name)
        assert part.num_blocks == -(-SEQUENCES[name] // 16)
        for block in range(part.num_blocks):
            tokens, rows = part.tokens(block), part.rows(block)
            local = rows - np.array([block * 16, 0], dtype=np.int32)
            expected = [(s, p) for s in range(len(tokens)) for p in range(8) if tokens[s, p] not in SPECIAL.excluded]
            assert sorted(map(tuple, local.tolist())) == expected
            assert list(map(tuple, local.tolist())) != expected
        assert part.valid().sum() == sum(len(part.rows(block)) for block in range(part.num_blocks))


def test_rows_come_back_in_the_order_asked_for(harvest: Harvest) -> None:
    part = _filled(harvest)
    site = Site(0, "attn_z")
    everything = torch.zeros(part.num_blocks * part.block_rows, WIDTHS[site], dtype=torch.bfloat16)
    everything[torch.from_numpy(part.valid())] = torch.cat([_activations(part, block)[site] for block in range(part.num_blocks)])
    rows = np.random.default_rng(1).permutation(np.flatnonzero(part.valid()))
    chunks = sorted({int(row) // part.chunk_rows for row in rows}, reverse=True)
    assert torch.equal(part.read(site, chunks, rows), everything[torch.from_numpy(rows)])
    wanted = part.valid() & (np.arange(len(part.valid())) % 3 == 0)
    assert torch.equal(torch.cat(list(part.batches(site, wanted))), everything[torch.from_numpy(wanted)])


def test_statistics_are_those_of_the_stored_rows(harvest: Harvest) -> None:
    part = _filled(harvest)
    for site in WIDTHS:
        x = _all_rows(part, site).double().numpy()
        moments = part.moments(site)
        assert moments.rows == len(x)
        np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(moments.mean_square, (x**2).sum(1).mean(), rtol=1e-12)
        np.testing.assert_allclose(moments.variance, x.var(0).sum(), rtol=1e-9)
        norms = part.norms(site)
        np.testing.assert_allclose(norms[part.valid()], np.linalg.norm(x, axis=1), rtol=1e-6)
        assert not norms[~part.valid()].any()


# Commits


def test_a_block_is_there_when_its_commit_is(harvest: Harvest) -> None:
    part, sites = harvest.part("train"), list(WIDTHS)
    assert part.missing(sites) == [0, 1, 2]
    part.write_block(1, _activations(part, 1))
    assert part.missing(sites) == [0, 2]
    assert harvest.part("held_out").missing(sites) == [0, 1]
    harvest.store.delete(f"{harvest.prefix}/commits/train/000001.json")
    assert part.missing(sites) == [0, 1, 2]


def test_a_harvest_without_its_tokens_commit_has_no_tokens(harvest: Harvest) -> None:
    again = Harvest(harvest.store, harvest.key)
    assert again.has_tokens
    assert len(again.description["token_fingerprint"]) == 64  # type: ignore[index]
    harvest.store.delete(f"{harvest.prefix}/commits/tokens.json")
    assert not Harvest(harvest.store, harvest.key).has_tokens


def test_a_site_that_is_added_later_leaves_the_others_alone(harvest: Harvest, suite: Suite) -> None:
    first, second = WIDTHS
    part = harvest.part("train")
    for block in range(part.num_blocks):
        part.write_block(block, _activations(part, block, [first]))
    root = harvest.store.local(f"{harvest.prefix}/train/activations/{first}")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}
    part = harvest.part("train")
    assert part.missing([first]) == []
    assert part.missing([first, second]) == [0, 1, 2]
    third = Site(2, "mlp_out")
    harvest.lay_out(suite, {third: 3})
    for block in range(part.num_blocks):
        part.write_block(block, _activations(part, block, [second]))
    assert part.missing([first, second]) == []
    assert part.missing([third]) == [0, 1, 2]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()} == before
    assert torch.equal(_all_rows(part, first), torch.cat([_activations(part, block, [first])[first] for block in range(3)]))


def test_a_site_that_is_zero_throughout_is_kept_like_any_other(harvest: Harvest) -> None:
    part = harvest.part("train")
    for block in range(part.num_blocks):
        part.write_block(block, {site: torch.zeros_like(x) for site, x in _activations(part, block).items()})
    for site, width in WIDTHS.items():
        assert torch.equal(_all_rows(part, site), torch.zeros(int(part.valid().sum()), width, dtype=torch.bfloat16))
        assert part.moments(site).mean_square == 0
        assert not part.norms(site).any()


def test_a_block_without_text_has_no_rows(harvest: Harvest) -> None:
    part = harvest.part("train")
    part.write_tokens(0, np.zeros((16, 8), dtype=np.int32), SPECIAL, 0)
    part = _filled(harvest)
    assert len(part.rows(0)) == 0
    assert part.moments(Site(0, "attn_z")).rows == len(part.rows(1)) + len(part.rows(2))
    assert len(_all_rows(part, Site(0, "attn_z"))) == part.valid().sum()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_activation_that_is_not_finite_is_refused_and_nothing_committed(harvest: Harvest, value: float) -> None:
    part = harvest.part("train")
    activations = _activations(part, 0)
    activations[Site(0, "attn_z")][3, 4] = value
    with pytest.raises(
        JumpsuiteError, match=r"^L00.attn_z has activations in block 0 of train that are not finite; expected numbers; set model.dtype"
    ):
        part.write_block(0, activations)
    assert part.missing(list(WIDTHS)) == [0, 1, 2]


def test_an_activation_too_large_for_the_stored_type_is_refused(harvest: Harvest) -> None:
    part = harvest.part("train")
    activations = {site: x.float() for site, x in _activations(part, 0).items()}
    activations[Site(0, "attn_z")][3, 4] = 3.4e38  # finite in float32, infinite once rounded to bfloat16
    with pytest.raises(JumpsuiteError, match="not finite"):
        part.write_block(0, activations)


# Damage


def _shard(harvest: Harvest, site: Site, block: int) -> Path:
    return harvest.store.local(f"{harvest.prefix}/train/activations/{site}/c/{block}/0")


def test_no_flipped_bit_of_a_shard_goes_unnoticed(harvest: Harvest) -> None:
    part, site = _filled(harvest), Site(0, "resid_post")
    shard = _shard(harvest, site, 1)
    whole, expected, found_out = shard.read_bytes(), _all_rows(part, site), 0
    chance = random.Random(0)  # noqa: S311
    places = [0, len(whole) - 1, len(whole) - 4, len(whole) - 5, *(chance.randrange(len(whole)) for _ in range(40))]
    for place in places:
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << chance.randrange(8))]) + whole[place + 1 :])
        try:
            assert torch.equal(_all_rows(harvest.part("train"), site), expected)  # a byte that no valid row depends on
        except Corrupt as damage:
            assert re.search(rf"{harvest.store.local(harvest.prefix)}/train: activations/{site} is damaged in rows", str(damage))  # noqa: PT017
            assert "\n" not in str(damage)  # noqa: PT017
            found_out += 1
    assert found_out >= len(places) / 2
    shard.write_bytes(whole)
    assert torch.equal(_all_rows(harvest.part("train"), site), expected)


@pytest.mark.parametrize("size", [0, 1, 100, -1, -300])
def test_a_truncated_shard_is_found_out(harvest: Harvest, size: int) -> None:
    _filled(harvest)
    shard = _shard(harvest, Site(0, "attn_z"), 0)
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(Corrupt, match=r"train: activations/L00.attn_z is damaged in rows 0 to "):
        _all_rows(harvest.part("train"), Site(0, "attn_z"))


def _spoil_tokens(part: Part) -> None:
    part.tokens(1)


def _spoil_rows(part: Part) -> None:
    part.rows(1)


def _spoil_norms(part: Part) -> None:
    part.norms(Site(0, "attn_z"))


def _spoil_moments(part: Part) -> None:
    part.moments(Site(0, "attn_z"))


OBJECTS: dict[str, Callable[[Part], None]] = {
    "tokens/c/1/0": _spoil_tokens,
    "rows/c/1/0": _spoil_rows,
    "statistics/L00.attn_z/norms/c/1": _spoil_norms,
    "statistics/L00.attn_z/sums/c/1/0": _spoil_moments,
    "activations/L00.attn_z/c/1/0": lambda part: _all_rows(part, Site(0, "attn_z")) is None,
}


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_that_is_lost_or_changed_is_named(harvest: Harvest, name: str) -> None:
    _filled(harvest)
    path = harvest.store.local(f"{harvest.prefix}/train/{name}")
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 128]) + data[1:])
    anew = rf"delete {harvest.store.where(harvest.prefix)} and run again"
    again = anew if name.startswith(("tokens", "rows")) else "run again, which harvests block 1 of L00.attn_z anew"
    with pytest.raises(Corrupt, match=rf"train: {name.split('/c/')[0]} is damaged in rows .*; {again}") as damage:
        OBJECTS[name](harvest.part("train"))
    assert "\n" not in str(damage.value)
    path.unlink()
    with pytest.raises(Corrupt, match=rf"train: {name} is missing; expected what was harvested; {again}"):
        OBJECTS[name](harvest.part("train"))


@pytest.mark.parametrize("name", ["train/000001.json", "tokens.json"])
def test_a_changed_commit_record_is_found_out_and_named(harvest: Harvest, name: str) -> None:
    _filled(harvest)
    path = harvest.store.local(f"{harvest.prefix}/commits/{name}")
    path.write_text(path.read_text().replace("attn_z", "mlp_out").replace("a model", "another model"))
    again = Harvest(harvest.store, harvest.key)
    with pytest.raises(Corrupt, match=f"^{path} was changed since it was written"):
        again.has_tokens if name == "tokens.json" else again.part("train").missing(list(WIDTHS))


@pytest.mark.parametrize("name", [name for name in OBJECTS if "L00" in name])
def test_a_damaged_block_once_found_is_all_that_is_harvested_again_and_that_of_one_site(harvest: Harvest, name: str) -> None:
    part, site, other = _filled(harvest), Site(0, "attn_z"), Site(0, "resid_post")
    expected, moments, norms = _all_rows(part, site), part.moments(site), part.norms(site)
    path = harvest.store.local(f"{harvest.prefix}/train/{name}")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(Corrupt):
        OBJECTS[name](harvest.part("train"))
    part = harvest.part("train")
    assert part.missing([other]) == []
    assert part.missing([site]) == [1]
    part.write_block(1, {site: _activations(part, 1)[site]})
    part = harvest.part("train")
    assert part.missing(list(WIDTHS)) == []
    assert torch.equal(_all_rows(part, site), expected)
    assert np.array_equal(part.moments(site).total, moments.total)
    assert np.array_equal(part.norms(site), norms)


# The whole way: documents to activations


@pytest.fixture(scope="module")
def harvested(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_text: Path) -> Catalogue:
    """A short harvest of the tiny model, at every site of it, in float32 so that nothing is rounded."""
    suite = Suite.model_validate(
        {
            "name": "short",
            "model": {"source": str(tiny_model), "dtype": "float32"},
            "text": {"source": str(tiny_text / "*.jsonl"), "context": 32, "tokens": 32 * 40, "held_out_tokens": 32 * 20},
            "harvest": {"block_sequences": 16, "batch_sequences": 3, "dtype": "float32"},
            "sites": {"layers": "all", "kinds": ["resid_post", "mlp_out", "attn_z"]},
            "dictionaries": [{"widths": 64, "target_l0s": 8}],
            "training": {"tokens": 512, "batch_rows": 256, "inputs": "scaled"},
            "device": "cpu",
        }
    )
    catalogue = Catalogue(suite, tmp_path_factory.mktemp("harvested"))
    tokenise.fn(catalogue)
    harvest_blocks.fn(catalogue)
    return catalogue


def test_activations_are_those_of_a_plain_forward_pass(harvested: Catalogue, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval().requires_grad_(False)
    z: dict[int, Tensor] = {}
    for layer, block in enumerate(model.model.layers):
        block.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs, layer=layer: z.__setitem__(layer, inputs[0]))
    assert len(harvested.sites) == 9
    for name in PARTS:
        part = harvested.harvest.part(name)
        for block in range(part.num_blocks):
            rows = torch.from_numpy(part.rows(block)).long()
            states = model(torch.from_numpy(part.tokens(block)).long(), output_hidden_states=True).hidden_states
            sequence, position = rows[:, 0] - 16 * block, rows[:, 1]
            stored = {
                site: part.read(site, list(range(16 * block, 16 * block + 16)), block * part.block_rows + np.arange(len(rows)))
                for site in harvested.sites
            }
            for layer in range(2):  # the last of `hidden_states` is after the final norm
                torch.testing.assert_close(stored[Site(layer, "resid_post")], states[layer + 1][sequence, position], rtol=1e-4, atol=1e-4)
            last = model.model.norm(stored[Site(2, "resid_post")])
            torch.testing.assert_close(last, states[3][sequence, position], rtol=1e-4, atol=1e-4)
            for layer in range(3):
                torch.testing.assert_close(stored[Site(layer, "attn_z")], z[layer][sequence, position], rtol=1e-4, atol=1e-4)
                block_in, attention = states[layer][sequence, position], model.model.layers[layer]
                after_attention = block_in + attention.post_attention_layernorm(attention.self_attn.o_proj(z[layer]))[sequence, position]
                expected = stored[Site(layer, "resid_post")] - after_attention
                torch.testing.assert_close(stored[Site(layer, "mlp_out")], expected, rtol=1e-3, atol=1e-3)


def test_tokens_are_packed_documents_and_no_document_is_on_both_sides(harvested: Catalogue, tiny_text: Path, tiny_model: Path) -> None:
    documents = {f["number"]: f["text"] for f in map(json.loads, (tiny_text / "notes.jsonl").read_text().splitlines())}
    tokenizer, seen = AutoTokenizer.from_pretrained(tiny_model), {}
    for name in PARTS:
        part = harvested.harvest.part(name)
        tokens = np.concatenate([part.tokens(block) for block in range(part.num_blocks)])
        assert tokens.shape == (harvested.suite.text.num_sequences if name == "train" else harvested.suite.text.num_held_out_sequences, 32)
        assert (tokens[:, 0] == tokenizer.bos_token_id).all()
        text = tokenizer.decode(tokens[tokens != tokenizer.bos_token_id].tolist())
        seen[name] = {int(number) for number in re.findall(r"In note (\d+),", text)}
        assert len(seen[name]) > 3
        whole = sorted(seen[name], key=lambda number, text=text: text.index(f"In note {number},"))[:-1]  # the last one is cut off
        assert all(documents[number] in text for number in whole)
    assert not seen["train"] & seen["held_out"]
    share = 1.1 * 20 / 60
    for name in PARTS:
        assert all(is_held_out(documents[number], share, 0) == (name == "held_out") for number in seen[name])


def test_a_second_harvest_does_nothing_and_a_lost_block_alone_is_made_again(harvested: Catalogue, tmp_path: Path) -> None:
    root = Path(shutil.copytree(harvested.store.local(""), tmp_path / "store"))
    prefix = root / harvested.harvest.prefix

    def state() -> dict[str, tuple[bytes, int]]:
        return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in prefix.rglob("*") if path.is_file()}

    before = state()
    for _ in range(2):
        catalogue = Catalogue(harvested.suite, root)
        tokenise.fn(catalogue)
        harvest_blocks.fn(catalogue)
    assert state() == before
    (prefix / "commits/train/000001.json").unlink()
    (prefix / "train/activations/L01.mlp_out/c/1/0").unlink()
    catalogue = Catalogue(harvested.suite, root)
    harvest_blocks.fn(catalogue)
    after = state()
    assert {name: data for name, (data, _) in after.items()} == {name: data for name, (data, _) in before.items()}
    rewritten = {name for name in after if after[name][1] != before[name][1]}
    assert rewritten
    assert all("/1" in name.split("/c")[-1] or name.endswith("000001.json") for name in rewritten)


def test_a_text_that_is_too_short_says_how_much_there_is(tiny_suite: dict[str, Any], tmp_path: Path) -> None:
    suite = Suite.model_validate(tiny_suite | {"text": tiny_suite["text"] | {"tokens": 1_000_000}})
    catalogue = Catalogue(suite, tmp_path)
    with pytest.raises(
        ConfigError, match=r"^text.tokens is 1,000,000; expected at most about \d\d,\d\d\d, as .* gives \d\d,\d\d\d; lower text.tokens, or"
    ):
        tokenise.fn(catalogue)
    assert not Catalogue(suite, tmp_path).harvest.has_tokens


# Metadata


def test_metadata_that_is_lost_or_changed_misleads_nobody_and_is_written_anew(
    harvest: Harvest, suite: Suite, caplog: pytest.LogCaptureFixture
) -> None:
    part = _filled(harvest)
    expected = {site: _all_rows(part, site) for site in WIDTHS}
    files = sorted(harvest.store.local(harvest.prefix).rglob("zarr.json"))
    before = {path: path.read_bytes() for path in files}
    per_site = 4  # statistics of it, their two arrays, and its activations
    assert len(files) == 1 + len(PARTS) * (1 + 2 + 2 + per_site * len(WIDTHS))
    for number, path in enumerate(files):
        if number % 3:
            path.write_bytes(before[path].replace(b"t", b"T", 1))
        else:
            path.unlink()
    damaged = harvest.part("train")
    assert all(torch.equal(_all_rows(damaged, site), rows) for site, rows in expected.items())
    harvest.lay_out(suite, WIDTHS)
    assert {path: path.read_bytes() for path in files} == before
    assert {record.getMessage().split()[0] for record in caplog.records} == {str(path) for path in files}
    assert {record.getMessage().partition(" ")[2] for record in caplog.records} == {
        "is missing; it is written anew",
        "was changed since it was written; it is written anew",
    }


def test_a_lost_layout_is_said_and_the_next_run_writes_it_anew(harvest: Harvest, suite: Suite) -> None:
    part = _filled(harvest)
    expected = _all_rows(part, Site(0, "attn_z"))
    harvest.store.delete(f"{harvest.prefix}/commits/layout.json")
    with pytest.raises(Corrupt, match=r"commits/layout.json is missing; expected the harvest's layout; run again, which writes it anew"):
        harvest.part("train")
    harvest.lay_out(suite, WIDTHS)
    assert torch.equal(_all_rows(harvest.part("train"), Site(0, "attn_z")), expected)


# Batches


@pytest.mark.parametrize(("batch_rows", "shuffle_rows"), [(5, 7), (40, 7), (8, 30), (3, 500)])
def test_batches_are_the_rows_of_their_order_though_memory_is_used_again(harvest: Harvest, batch_rows: int, shuffle_rows: int) -> None:
    part, site = _filled(harvest), Site(0, "attn_z")
    kept = part.valid() & (np.arange(len(part.valid())) % 4 != 0)
    everything = torch.zeros(len(kept), WIDTHS[site], dtype=torch.bfloat16)
    everything[torch.from_numpy(part.valid())] = _all_rows(part, site)
    order = TrainingOrder(lambda _: kept, 1, len(kept), batch_rows=batch_rows, chunk_rows=part.chunk_rows, shuffle_rows=shuffle_rows, seed=1)
    steps = 3 * int(kept.sum()) // batch_rows
    with closing(Reader(part, site, order, steps, torch.device("cpu"))) as reader:
        for t in range(steps):
            rows = order.batch(t, lambda turn, group: torch.from_numpy(order.group(turn, group)[1]))
            assert torch.equal(reader.batch(t), everything[rows])
        assert len(reader.free) + len(reader.used) + len(reader.groups) <= 4 + batch_rows  # and does not grow with the steps
