"""Release: what a suite makes is the same function in other people's libraries, is published whole or not at all, and what changed is found."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from command import environment, here, write_suite
from conftest import tiny_fields
from hub_server import HubServer
from loaders import LOADERS, dictionary_learning, in_each, relative_error

from storage.formats import FORMATS, read
from storage.release import read_dictionary, read_sample, read_scorecard, scorecard_paths

pytestmark = pytest.mark.usefixtures("prefect_server")
PLACE = "org/saes"


@pytest.fixture(scope="module")
def suite_file(tiny_model: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = tiny_fields(tiny_model, tiny_text)
    fields["sites"]["layers"] = [1]
    topk = {"architecture": "topk", "widths": 64, "target_l0s": 8, "sites": "L01.resid_post"}
    fields["dictionaries"].append(topk)
    fields["training"] |= {"tokens": 15_360}
    fields["release"] = {"formats": list(FORMATS), "canonical_l0": 15, "title": "SAEs for a tiny model"}
    return write_suite(fields, tmp_path_factory)


@pytest.fixture(scope="module")
def store(suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store") / "runs"
    run = here("run", suite_file, "--store", store)
    assert run.returncode == 0, run.stderr
    return store


@pytest.fixture(scope="module")
def release(store: Path) -> Path:
    return store / "tiny/release"


def cards(release: Path) -> list[dict[str, Any]]:
    return [read_scorecard(path) for path in scorecard_paths(release)]


@pytest.mark.parametrize("name", LOADERS)
def test_every_dictionary_is_the_same_function_in_the_library_of_its_format(release: Path, name: str) -> None:
    compared = set()
    for card, _, _, encode, decode in in_each(release, [name]):
        assert encode <= 1e-5
        assert decode <= 1e-5
        compared.add(card["spec"]["site"])
    assert compared == {"L01.resid_post", "L01.mlp_out", "L01.attn_z"}
    lacking = [card["spec"]["architecture"] for card in cards(release) if name not in card["formats"]]
    assert lacking == ([] if name == "saelens" else ["topk"])


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_reads_back_the_site_and_the_weights_that_it_wrote(release: Path, name: str) -> None:
    for card in cards(release):
        if name in card["formats"]:
            folder, own = release / card["formats"][name], read_dictionary(release, card)["saelens"]
            assert str(FORMATS[name].site(folder)) == card["spec"]["site"]
            read = FORMATS[name].read(folder)
            assert read.k == own.k
            for mine, theirs in zip(own.tensors().values(), read.tensors().values(), strict=True):
                assert torch.allclose(mine, theirs, rtol=0, atol=1e-6 if name == "saelens_gated" else 0)


def test_of_each_site_and_width_the_one_of_the_wanted_l0_is_canonical(release: Path) -> None:
    chosen = [card for card in cards(release) if card["canonical"]]
    assert sorted(card["spec"]["site"] for card in chosen) == ["L01.attn_z", "L01.mlp_out", "L01.resid_post"]
    (of_two,) = [card for card in chosen if card["spec"]["site"] == "L01.resid_post"]
    assert of_two["spec"]["target_l0"] == 16
    canonical = release / "gemma_scope/res/layer_1/width_64/canonical/params.npz"
    assert canonical.read_bytes() == (release / of_two["formats"]["gemma_scope"] / "params.npz").read_bytes()
    assert "width_64_l0_16" in (release / "README.md").read_text().partition("## Which one to take")[2].partition("##")[0]


def test_the_snippets_of_the_card_run_and_give_what_the_dictionary_gives(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (release / "README.md").read_text()
    site = re.search(r"## How to load one\n\n`(L\d\d\.\w+)`", text)
    assert site
    code = re.findall(r"^### (.+?)\n\n```python\n(.*?)```", text, re.M | re.S)
    assert len(code) == len(FORMATS) + 1
    monkeypatch.chdir(release)
    monkeypatch.setitem(sys.modules, "dictionary_learning", dictionary_learning())
    (card,) = [card for card in cards(release) if card["canonical"] and card["spec"]["site"] == site[1]]
    ours, x = read_dictionary(release, card)["saelens"], read_sample(release, site[1])
    for title, snippet in code:
        names: dict[str, Any] = {"activations": x.numpy() if "NumPy" in title else x}
        exec(snippet, names)  # noqa: S102
        if title.startswith("Activations"):
            assert names["activations"].shape[1] == x.shape[1]
            continue
        assert relative_error(torch.as_tensor(names["latents"]), ours.encode(x)) <= 1e-5
        assert relative_error(torch.as_tensor(names["reconstruction"]), ours.reconstruct(x)) <= 1e-5


def test_what_a_dictionary_comes_from_is_told_of_each(release: Path) -> None:
    told = json.loads((release / "provenance.json").read_text())
    assert len(told["lock_sha256"]) == len(told["text"]["token_fingerprint"]) == 64
    for card in cards(release):
        of = told["dictionaries"][f"{card['spec']['site']}/{card['name']}"]
        assert of["dictionary"] == card["dictionary"]
        assert of["training"]["batch_rows"] == 256
        assert of["spec"]["seed"] == 0
        assert of["hardware"].endswith("threads")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", of["finished"])


def test_a_dictionary_that_breaks_a_rule_is_left_out_and_listed_with_the_reason(store: Path, suite_file: Path, tmp_path: Path) -> None:
    run = here("release", suite_file, "--store", store, "--to", tmp_path / "release", "--set", "release.rules.max_fvu=1e-9")
    assert run.returncode == 1
    assert "release.rules are kept by none of 5 dictionaries" in run.stderr
    l0s = sorted(card["l0"] for card in cards(store / "tiny/release") if card["spec"]["architecture"] == "topk")
    run = here(
        "release", suite_file, "--store", store, "--to", tmp_path / "release", "--set", f"release.rules.l0_within={abs(l0s[0] / 8 - 1) + 1e-6}"
    )
    assert run.returncode == 0, run.stderr
    kept = {(card["spec"]["site"], card["name"]) for card in cards(tmp_path / "release")}
    assert ("L01.resid_post", "topk_width_64_l0_8") in kept
    assert len(kept) < 5
    listed = (tmp_path / "release/README.md").read_text().partition("## Not released")[2].partition("\n## ")[0]
    rows = pq.read_table(tmp_path / "release/metrics.parquet").to_pylist()
    assert len(rows) == 5
    for row in rows:
        assert (row["left_out"] is None) == ((row["site"], row["name"]) in kept)
        if row["left_out"]:
            assert f"| {row['site']} | `{row['name']}` | {row['left_out']} |" in listed


def rewrite_sums(release: Path) -> None:
    """Checksums that fit what is there, as who wants to deceive would write them."""
    files = sorted(path for path in release.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(release)}\n" for path in files)
    (release / "SHA256SUMS").write_text(sums)


def test_any_changed_byte_of_a_release_is_found_and_its_file_named(release: Path, tmp_path: Path) -> None:
    mine = tmp_path / "release"
    shutil.copytree(release, mine)
    chance = random.Random(0)  # noqa: S311
    files = sorted(path for path in mine.rglob("*") if path.is_file())
    for _ in range(100):
        path = chance.choice(files)
        data = path.read_bytes()
        position = chance.randrange(len(data))
        path.write_bytes(data[:position] + bytes([data[position] ^ 1 << chance.randrange(8)]) + data[position + 1 :])
        found = here("verify", mine)
        assert found.returncode == 1
        # Of the list of checksums itself, the line that does not fit is what is named.
        assert path.name == "SHA256SUMS" or f"{path.relative_to(mine)} was changed" in found.stderr
        assert "Traceback" not in found.stderr
        path.write_bytes(data)
    assert here("verify", mine).returncode == 0


def test_dictionaries_that_changed_places_are_found_and_named_though_the_checksums_fit(release: Path, tmp_path: Path) -> None:
    mine, done = tmp_path / "release", 0
    pairs = [(a, b) for a in cards(release) for b in cards(release) if str(a["spec"]) < str(b["spec"])]
    for name in FORMATS:
        for a, b in pairs:
            if name not in a["formats"] or name not in b["formats"] or done == 20:
                continue
            shutil.copytree(release, mine)
            first, second = (mine / card["formats"][name] for card in (a, b))
            if done % 2:
                mark = FORMATS[name].MARK
                weights = (first / mark).read_bytes()
                (first / mark).write_bytes((second / mark).read_bytes())
                (second / mark).write_bytes(weights)
            else:  # whole folders are renamed
                first.rename(mine / "elsewhere")
                second.rename(first)
                (mine / "elsewhere").rename(second)
            rewrite_sums(mine)
            found = here("verify", mine)
            assert found.returncode == 1
            for card in (a, b):
                assert f"{card['spec']['site']} {card['name']}: " in found.stderr or card["formats"][name] in found.stderr
            shutil.rmtree(mine)
            done += 1
    assert done == 20


def test_another_canonical_dictionary_and_one_that_no_scorecard_knows_are_found_though_the_checksums_fit(release: Path, tmp_path: Path) -> None:
    mine = tmp_path / "release"
    shutil.copytree(release, mine)
    tree = mine / "gemma_scope/res/layer_1/width_64"
    (other,) = [path for path in tree.glob("average_l0_*/params.npz") if path.read_bytes() != (tree / "canonical/params.npz").read_bytes()]
    shutil.copyfile(other, tree / "canonical/params.npz")
    shutil.copytree(mine / "saelens/L01.mlp_out", mine / "saelens/L01.more")
    rewrite_sums(mine)
    found = here("verify", mine)
    assert found.returncode == 1
    assert "L01.resid_post width_64_l0_16: the canonical one of its width holds other weights" in found.stderr
    assert "saelens/L01.more/width_64_l0_8: no scorecard knows of it" in found.stderr


def test_weights_that_are_said_to_be_of_another_site_are_found_though_the_checksums_fit(release: Path, tmp_path: Path) -> None:
    mine = tmp_path / "release"
    shutil.copytree(release, mine)
    config = mine / "saelens/L01.mlp_out/width_64_l0_8/cfg.json"
    config.write_text(config.read_text().replace("hook_mlp_out", "hook_resid_post"))
    rewrite_sums(mine)
    found = here("verify", mine)
    assert found.returncode == 1
    assert "saelens/L01.mlp_out/width_64_l0_8 says that it is of L01.resid_post; expected L01.mlp_out" in found.stderr


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("formats", {"saelens": "saelens/../../elsewhere"}),
        ("formats", {"saelens": "/etc"}),
        ("formats", {}),
        ("formats", []),
        ("formats", None),
        ("sample", None),
        ("sample", {"l0": "many", "fvu": None}),
        ("spec", {}),
        ("weights", 3),
        ("name", None),
        ("loss", {}),
    ],
)
def test_a_hostile_or_damaged_scorecard_is_told_in_a_sentence(release: Path, tmp_path: Path, field: str, value: Any) -> None:
    mine = tmp_path / "release"
    shutil.copytree(release, mine)
    path = scorecard_paths(mine)[0]
    path.write_text(json.dumps(read_scorecard(path) | {field: value}))
    rewrite_sums(mine)
    found = here("verify", mine, *(["--loss"] if field == "loss" else []))
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    assert "please report" not in found.stderr
    assert "get the release again" in found.stderr or "get it again" in found.stderr


def test_scorecards_that_changed_places_are_found_though_the_checksums_fit(release: Path, tmp_path: Path) -> None:
    mine = tmp_path / "release"
    shutil.copytree(release, mine)
    first, second = scorecard_paths(mine)[:2]
    first.rename(tmp_path / "one")
    second.rename(first)
    (tmp_path / "one").rename(second)
    rewrite_sums(mine)
    found = here("verify", mine)
    assert found.returncode == 1
    assert "its scorecard is that of" in found.stderr


def test_delta_loss_is_measured_again_with_the_model_and_held_against_the_card(release: Path, tmp_path: Path) -> None:
    verified = here("verify", release, "--loss")
    assert verified.returncode == 0, verified.stderr
    assert "5 dictionaries give the delta loss of their scorecards" in verified.stdout
    mine = tmp_path / "release"
    shutil.copytree(release, mine)
    path = scorecard_paths(mine)[2]
    card = json.loads(path.read_text())
    card["loss"]["sample"]["delta"] -= 0.01
    path.write_text(json.dumps(card))
    rewrite_sums(mine)
    assert here("verify", mine).returncode == 0
    found = here("verify", mine, "--loss")
    assert found.returncode == 1
    assert re.fullmatch(
        rf"jumpsuite: {path.parent.name} {path.stem}: its delta loss is .*; get the release again", found.stderr.strip().splitlines()[-1]
    )


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    server = HubServer()
    server.start()
    for name, value in hub_environment(server, tmp_path).items():
        monkeypatch.setenv(name, value)
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.stop()


def hub_environment(server: HubServer, folder: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": server.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder / "cache"),
        "HF_TOKEN": "hf_secret",
    }


def published(hub: HubServer) -> dict[str, bytes]:
    return {name: data for name, data in hub.head(PLACE).items() if name != ".gitattributes"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_release_is_published_in_one_commit_and_is_verified_from_there(hub: HubServer, store: Path, suite_file: Path, release: Path) -> None:
    dry = here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert re.search(r"\d+ files to send \(0.00 GB\), 0 to remove, 0 there already", dry.stderr)
    assert not hub.repositories
    run = here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}")
    assert run.returncode == 0, run.stderr
    assert len(hub.repositories[PLACE]) == 2
    assert published(hub) == files_of(release)
    assert hub.tokens - {None} == {"Bearer hf_secret"}
    assert "hf_secret" not in dry.stderr + run.stderr + run.stdout
    verified = here("verify", f"hf://{PLACE}")
    assert verified.returncode == 0, verified.stderr
    again = here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}")
    assert again.returncode == 0
    assert "0 files to send" in again.stderr
    assert len(hub.repositories[PLACE]) == 2


def test_saelens_loads_a_published_dictionary_by_its_repository_and_folder(hub: HubServer, store: Path, suite_file: Path, release: Path) -> None:
    from sae_lens import SAE
    from sae_lens.loading.pretrained_sae_loaders import gemma_3_sae_huggingface_loader

    assert here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}").returncode == 0
    for card in cards(release):
        ours, x = read_dictionary(release, card)["saelens"], read_sample(release, card["spec"]["site"])
        theirs = SAE.from_pretrained(PLACE, card["formats"]["saelens"])
        assert relative_error(theirs.encode(x), ours.encode(x)) <= 1e-5
        assert relative_error(theirs.decode(theirs.encode(x)), ours.reconstruct(x)) <= 1e-5
        if "gemma_scope_2" in card["formats"]:
            config, tensors, _ = gemma_3_sae_huggingface_loader(PLACE, card["formats"]["gemma_scope_2"])
            assert config["hook_name"] == theirs.cfg.metadata.hook_name
            for key, tensor in ours.tensors().items():
                assert torch.equal(tensors[key], tensor)


def test_an_upload_that_breaks_off_publishes_nothing_and_goes_on_from_there(hub: HubServer, store: Path, suite_file: Path, release: Path) -> None:
    hub.refuse_uploads_after = 4
    broken = here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}")
    assert broken.returncode == 1
    assert "Traceback" not in broken.stderr
    assert f"hf://{PLACE} could not be written to" in broken.stderr
    assert published(hub) == {}
    hub.refuse_uploads_after = None
    assert here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}").returncode == 0
    assert published(hub) == files_of(release)
    assert len(hub.repositories[PLACE]) == 2
    assert len(hub.uploads) == len(set(hub.uploads)), "what had come before is not sent again"


def test_an_upload_that_is_killed_publishes_nothing_and_goes_on_from_there(
    hub: HubServer, store: Path, suite_file: Path, release: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "flows.main", "release", suite_file, "--store", store, "--to", f"hf://{PLACE}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run: Any = subprocess.Popen(command, env=environment(**hub_environment(hub, tmp_path)), start_new_session=True, **quiet)
    while len(hub.uploads) < 3:
        assert run.poll() is None, "it went by too quickly"
        time.sleep(0.001)
    os.killpg(run.pid, 9)
    run.wait()
    assert published(hub) == {}
    assert here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}").returncode == 0
    assert published(hub) == files_of(release)
    assert len(hub.repositories[PLACE]) == 2


def test_dictionaries_that_are_added_are_all_that_is_sent(hub: HubServer, store: Path, suite_file: Path, tmp_path: Path) -> None:
    worst = max(card["fvu"] for card in cards(store / "tiny/release"))
    fewer = here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}", "--set", f"release.rules.max_fvu={worst - 1e-6}")
    assert fewer.returncode == 0, fewer.stderr
    assert len([name for name in published(hub) if name.startswith("scorecards")]) == 4
    before = len(hub.uploads)
    assert here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}").returncode == 0
    assert published(hub) == files_of(store / "tiny/release")
    assert 0 < len(hub.uploads) - before <= len(FORMATS) + 2, "weights in each format, the table and the picture"
    assert len(hub.uploads) == len(set(hub.uploads))


def test_a_repository_that_holds_other_things_is_left_as_it_is(hub: HubServer, store: Path, suite_file: Path) -> None:
    hub.repositories[PLACE] = [{"thesis": b"years of work"}]
    for _ in range(2):
        run = here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}")
        assert run.returncode == 1
        assert f"hf://{PLACE} is there and is not a release" in run.stderr
    assert hub.repositories[PLACE] == [{"thesis": b"years of work"}]


def test_what_somebody_changed_on_the_hub_is_put_right_by_releasing_again(hub: HubServer, store: Path, suite_file: Path, release: Path) -> None:
    to = ("release", suite_file, "--store", store, "--to", f"hf://{PLACE}")
    assert here(*to).returncode == 0
    hub.repositories[PLACE].append(hub.head(PLACE) | {"README.md": b"better words", "suite.yaml": b"name: other"})
    assert here("verify", f"hf://{PLACE}").returncode == 1
    assert here(*to).returncode == 0
    assert published(hub) == files_of(release)
    assert here("verify", f"hf://{PLACE}").returncode == 0


def test_a_readme_that_somebody_wrote_is_not_replaced(hub: HubServer, store: Path, suite_file: Path) -> None:
    hub.repositories[PLACE] = [{"README.md": b"my own words"}]
    run = here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}")
    assert run.returncode == 1
    assert f"hf://{PLACE} is there and is not a release" in run.stderr
    assert hub.repositories[PLACE] == [{"README.md": b"my own words"}]


def test_a_token_that_may_not_write_is_told_in_a_sentence(hub: HubServer, store: Path, suite_file: Path) -> None:
    hub.needs_token = "hf_another"  # noqa: S105
    run = here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}")
    assert run.returncode == 1
    assert "HF_TOKEN" in run.stderr
    assert "hf_secret" not in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("place", ["hf://", "hf://org", "hf://org/a/b", "hf://org/saes@main"])
def test_a_place_that_is_no_repository_to_publish_to_is_told_in_a_sentence(store: Path, suite_file: Path, place: str) -> None:
    run = here("release", suite_file, "--store", store, "--to", place)
    assert run.returncode == 2
    assert "hf://" in run.stderr
    assert "expected" in run.stderr


# Other people's dictionaries


def test_anybodys_dictionaries_are_measured_beside_the_suites_own(
    hub: HubServer, store: Path, suite_file: Path, release: Path, tmp_path: Path
) -> None:
    assert here("release", suite_file, "--store", store, "--to", f"hf://{PLACE}").returncode == 0
    compared = here("evaluate", suite_file, "--store", store, "--release", f"hf://{PLACE}/gemma_scope_2")
    assert compared.returncode == 0, compared.stderr
    of_suite = {card["name"]: card for card in cards(release) if card["spec"]["site"] == "L01.resid_post"}
    rows = [line.split() for line in compared.stdout.splitlines() if line.startswith("L01.resid_post")]
    assert len(rows) == 3 + 2, "the suite's three, and two that are not TopK"
    ours, theirs = ({tuple(row[2:]) for row in rows if ("/" in row[1]) == foreign} for foreign in (False, True))
    assert theirs < ours, "the same dictionaries by the same numbers"
    assert len(of_suite) == 3


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "jumprelu"])
@pytest.mark.parametrize("subtracts", [True, False])
def test_what_saelens_saved_of_any_architecture_is_read_as_the_same_function(architecture: str, subtracts: bool, tmp_path: Path) -> None:
    from sae_lens import SAE

    torch.manual_seed(0)
    config: dict[str, Any] = {"d_in": 24, "d_sae": 80, "apply_b_dec_to_input": subtracts, "metadata": {"hook_name": "blocks.3.attn.hook_z"}}
    config |= {"k": 5, "rescale_acts_by_decoder_norm": True} if architecture == "topk" else {}
    sae: Any = SAE.from_dict(config | {"architecture": architecture, "dtype": "float32", "device": "cpu"})
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.rand(parameter.shape) if name == "threshold" else torch.randn(parameter.shape) / 3)
    sae.save_model(tmp_path)
    read, x = FORMATS["saelens"].read(tmp_path), torch.randn(200, 24)
    assert str(FORMATS["saelens"].site(tmp_path)) == "L03.attn_z"
    assert relative_error(read.reconstruct(x), sae.decode(sae.encode(x))) <= 1e-5
    assert torch.equal(read.encode(x) > 0, sae.encode(x) > 0)


@pytest.mark.parametrize(
    ("hook", "site"),
    [("blocks.9.hook_resid_post", "L09.resid_post"), ("blocks.9.hook_resid_pre", "L08.resid_post"), ("blocks.0.hook_mlp_out", "L00.mlp_out")],
)
def test_transformer_lens_hooks_are_read_as_sites(hook: str, site: str, tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text(json.dumps({"metadata": {"hook_name": hook}}))
    assert str(FORMATS["saelens"].site(tmp_path)) == site


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_pre", "hook_embed", "blocks.3.hook_mlp_in", None])
def test_a_transformer_lens_hook_of_no_site_is_told(hook: str | None, tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text(json.dumps({"metadata": {"hook_name": hook}}))
    with pytest.raises(ValueError, match=r"^hook_name is "):
        FORMATS["saelens"].site(tmp_path)


def test_a_threshold_below_zero_lets_nothing_negative_through(tmp_path: Path) -> None:
    from sae_lens import SAE

    torch.manual_seed(0)
    config = {
        "d_in": 24,
        "d_sae": 80,
        "architecture": "jumprelu",
        "dtype": "float32",
        "device": "cpu",
        "metadata": {"hook_name": "blocks.3.attn.hook_z"},
    }
    sae: Any = SAE.from_dict(config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 3)
    sae.save_model(tmp_path)
    found, x = read("saelens", tmp_path), torch.randn(200, 24)
    assert found.encode(x).min() >= 0
    assert relative_error(found.reconstruct(x), sae.decode(sae.encode(x))) <= 1e-5


@pytest.mark.parametrize("kind", ["AutoEncoder", "GatedAutoEncoder", "JumpReluAutoEncoder"])
def test_what_dictionary_learning_saved_is_read_as_the_same_function(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sae = getattr(dictionary_learning(), kind)(24, 80)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.rand(parameter.shape) if name == "threshold" else torch.randn(parameter.shape) / 3)
    torch.save(sae.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": kind, "layer": 7, "submodule_name": "mlp_out_layer_7"}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    read, x = FORMATS["dictionary_learning"].read(tmp_path), torch.randn(200, 24)
    assert str(FORMATS["dictionary_learning"].site(tmp_path)) == "L07.mlp_out"
    assert relative_error(read.reconstruct(x), sae(x)) <= 1e-5


def test_the_site_of_gemma_scopes_files_is_told_by_their_place_alone(tmp_path: Path) -> None:
    for repository, kind in (("gemma-scope-2b-pt-res", "resid_post"), ("gemma-scope-9b-pt-mlp", "mlp_out"), ("gemma-scope-2b-pt-att", "attn_z")):
        folder = tmp_path / repository / "layer_12/width_16k/average_l0_82"
        assert str(FORMATS["gemma_scope"].site(folder)) == f"L12.{kind}"
    with pytest.raises(ValueError, match=r"^its path does not say layer_L, and res, mlp or att"):
        FORMATS["gemma_scope"].site(tmp_path / "saes/layer_12")


def test_what_is_no_dictionary_is_told_and_left_out(store: Path, suite_file: Path, release: Path, tmp_path: Path) -> None:
    nothing = here("evaluate", suite_file, "--store", store, "--release", tmp_path)
    assert nothing.returncode == 1
    assert "holds no dictionary" in nothing.stderr
    (card,) = [card for card in cards(release) if card["spec"]["site"] == "L01.mlp_out"]
    shutil.copytree(release / card["formats"]["saelens"], tmp_path / "good")
    for name, weights in (("pickled", b"\x80\x04K\x01."), ("cut", (tmp_path / "good/sae_weights.safetensors").read_bytes()[:100])):
        shutil.copytree(tmp_path / "good", tmp_path / name)
        (tmp_path / name / "sae_weights.safetensors").write_bytes(weights)
    compared = here("evaluate", suite_file, "--store", store, "--release", tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "Traceback" not in compared.stderr
    for name in ("pickled", "cut"):
        assert f"{name} cannot be read (" in compared.stderr
    assert len([line for line in compared.stdout.splitlines() if line.startswith("L01.mlp_out")]) == 2
    empty = here("evaluate", suite_file, "--store", tmp_path / "empty", "--release", tmp_path / "good")
    assert empty.returncode == 1
    assert "run jumpsuite harvest first" in empty.stderr


def test_a_suite_begins_from_released_weights(store: Path, suite_file: Path, release: Path, tmp_path: Path) -> None:
    mine = tmp_path / "runs"
    shutil.copytree(store, mine)
    one_step = ["training.tokens=256", "training.learning_rate=1e-12", "dictionaries=[{widths: 64, target_l0s: 16}]"]
    settings = [word for setting in (f"training.start={release}", *one_step) for word in ("--set", setting)]
    run = here("run", suite_file, "--store", mine, "--only", "L01.resid_post", *settings)
    assert run.returncode == 0, run.stderr
    assert "L01.resid_post width_64_l0_16 begins from saelens/L01.resid_post/width_64_l0_16" in run.stderr
    (path,) = [path for path in (mine / "dictionaries").rglob("dictionary.json") if '"start"' in path.read_text()]
    begun = json.loads(path.read_text())
    (card,) = [card for card in cards(release) if card["spec"]["target_l0"] == 16]
    assert begun["start"] == {"dictionary": card["formats"]["saelens"], "place": str(release), "weights": card["weights"]["saelens"]}
    from safetensors.torch import load_file

    for name, tensor in read_dictionary(release, card)["saelens"].tensors().items():
        assert torch.allclose(load_file(path.parent / "dictionary.safetensors")[name], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("dictionaries=[{widths: 128, target_l0s: 16}]", "expected a dictionary of L01.resid_post with 128 latents of 32 dimensions"),
        ("dictionaries=[{architecture: topk, widths: 64, target_l0s: 16}]", "expected none but for jumprelu dictionaries"),
        ("training.start=/nowhere", "training.start is '/nowhere', which is not a folder"),
    ],
)
def test_weights_that_nothing_can_begin_from_are_told_in_a_sentence(store: Path, suite_file: Path, release: Path, setting: str, said: str) -> None:
    settings = ["--set", "dictionaries=[{widths: 64, target_l0s: 16}]", "--set", f"training.start={release}", "--set", setting]
    run = here("run", suite_file, "--store", store, "--only", "L01.resid_post", *settings)
    assert run.returncode in (1, 2)
    assert said in run.stderr
    assert "Traceback" not in run.stderr
