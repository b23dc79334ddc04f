"""Sharding: two processes that share a dictionary's latents do what one does with all of them, and hold half of it each."""

import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_trainer import CPU, PLAIN, D, batch, copied, run, spec_of, training_of
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from core.anatomy import devices_of
from core.dense_step import DenseStep
from core.errors import ConfigError, JumpsuiteError, SickDictionary
from core.objective import loss
from core.sharding import Shards, own, whole
from core.statistics import Normaliser
from core.suite_file import parse_suite
from core.trainer import Trainer
from tasks.processes import in_processes

STEPS, HALF = 8, 3
PENALTIES = {
    "per-token": ({"target_l0_objective": "per-token"}, {}),
    "batch-mean": ({"target_l0_objective": "batch-mean"}, {}),
    "linear": ({}, {"target_l0": None, "l0_coefficient": 0.1}),
}
FULL = "the disk is full; expected room; make some"
SKEWED = Normaliser(torch.linspace(-1, 1, D), math.sqrt(D))


def cases() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Fields of the training and of the spec, by a name."""
    found = {}
    for (penalty, (fields, spec)), threshold, clip, beta1 in itertools.product(PENALTIES.items(), ("linear", "log"), (None, 0.5), (0.0, 0.9)):
        more = {"threshold_parameter": threshold, "gradient_clip": clip, "adam_beta1": beta1, "target_l0_coefficient": 0.01}
        found[f"{penalty}, {threshold} threshold, clip {clip}, beta1 {beta1}"] = (fields | more, spec)
    for threshold in ("linear", "log"):
        found[f"{threshold} threshold that starts at twice the target"] = ({"threshold_start": 2.0, "threshold_parameter": threshold}, {})
    return found


RESUMED = [name for name in cases() if name.endswith("clip 0.5, beta1 0.9")]


def trainer_of(name: str, shards: Shards | None = None) -> Trainer:
    fields, spec = cases()[name]
    return dense(Trainer(spec_of(STEPS, **spec), training_of(**fields), SKEWED, CPU, shards))


def dense(trainer: Trainer) -> Trainer:
    """One that steps by autograd on one process too, where the sparse step would round otherwise."""
    trainer._step = DenseStep(trainer.dictionary, trainer.adam, trainer.spec, trainer.training)
    return trainer


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """The loss of the first batch, and its gradients."""
    x_BD = SKEWED(batch(0))
    x_BD = trainer.shards.everywhere(x_BD) if trainer.shards else x_BD
    parameters = dict(trainer.dictionary.named_parameters())
    total = loss(trainer.dictionary, x_BD, trainer.spec, trainer.training, 0.5)[0]
    found = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True)) | {"loss": total.detach()[None]}
    return {f"gradient.{name}": tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in found.items()}


def everything(shards: Shards, folder: Path) -> None:
    """Every case on these shards, and what else is asked below; what comes of it is written to the folder."""
    torch.set_num_threads(1)

    def keep(name: str, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        if shards.stores:
            save_file({key: tensor.detach().contiguous() for key, tensor in tensors.items()}, folder / f"{name}.safetensors")
        (folder / f"{name}.{shards.rank}.json").write_text(json.dumps(values))

    for number, name in enumerate(cases()):
        trainer = trainer_of(name, shards)
        keep(f"{number} before", trainer.state()[0] | gradients(trainer), {})
        run(trainer, until=HALF)
        middle = copied(trainer.state())
        keep(f"{number} middle", *middle)
        keep(f"{number} after", *run(trainer).state())
        keep(f"{number} folded", trainer.fold().tensors(), {})

        if name not in RESUMED:
            continue
        resumed = trainer_of(name, shards)
        resumed.load_state(*shards.agree(middle if shards.stores else None))
        keep(f"{number} loaded", *resumed.state())
        keep(f"{number} resumed", *run(resumed).state())

        taken_over = trainer_of(name, shards)
        taken_over.load_state(*shards.agree(copied(run(trainer_of(name), until=HALF).state()) if shards.stores else None))
        keep(f"{number} taken over", *taken_over.state())
        keep(f"{number} taken over and finished", *run(taken_over).state())

    keep("memory", {}, {name: measured(trainer_of(name, shards)) for name in list(cases())[:2]})
    keep("sick", {}, {"said": [said(poisoned_trainer(shards)), said(silent_trainer(shards)), said(damaged_trainer(shards))]})
    if shards.rank == 1:
        raise JumpsuiteError(FULL)
    torch.distributed.barrier()


def measured(trainer: Trainer) -> dict[str, Any]:
    """Rows that lie here of all that has a row for each latent, and what a step exchanges."""
    tensors = trainer.adam.parameters | trainer.adam.state()
    with CommDebugMode() as exchanged:
        run(trainer, until=1)
    return {
        "rows": {name: len(tensor.to_local()) for name, tensor in tensors.items() if isinstance(tensor, DTensor) and not name.endswith("b_dec")},
        "exchanged": sorted({str(operation).rpartition(".")[2] for operation in exchanged.get_comm_counts()}),
    }


def poisoned_trainer(shards: Shards | None) -> Trainer:
    return dense(Trainer(spec_of(300), training_of(), Normaliser(torch.full((D,), math.nan), 1.0), CPU, shards))


def silent_trainer(shards: Shards | None) -> Trainer:
    return dense(Trainer(spec_of(300), training_of(threshold_init=50.0), PLAIN, CPU, shards))


def damaged_trainer(shards: Shards | None) -> Trainer:
    """Its last latent's threshold is no number, which shows in no sum: the latent is silent."""
    trainer = dense(Trainer(spec_of(300), training_of(), PLAIN, CPU, shards))
    if shards is None or shards.rank == 1:
        own(trainer.dictionary).threshold_parameter.detach()[-1] = math.nan
    return trainer


def said(trainer: Trainer) -> str:
    with pytest.raises(SickDictionary) as caught:
        run(trainer)
    return str(caught.value)


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote before one of them ended with an error."""
    folder = tmp_path_factory.mktemp("two")
    try:
        in_processes(everything, (folder,), devices_of("cpu", 2))
    except JumpsuiteError as error:
        (folder / "ended").write_text(str(error))
    return folder


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], of: str) -> None:
    """To 1e-5 of the largest entry of each tensor."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        off = float((found[name].double() - tensor.double()).abs().max() / tensor.double().abs().max().clamp(min=1e-12))
        assert off <= 1e-5, f"{name} of {of} is off by {off:.2g}"


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize(("number", "name"), list(enumerate(cases())))
def test_two_processes_begin_where_one_does_and_go_where_it_goes(on_two: Path, number: int, name: str) -> None:
    alone = trainer_of(name)
    before = load_file(on_two / f"{number} before.safetensors")
    assert_same({key: tensor for key, tensor in before.items() if not key.startswith("gradient.")}, alone.state()[0])
    assert_close({key: tensor for key, tensor in before.items() if key.startswith("gradient.")}, gradients(alone), "the first batch")
    for steps, moment in ((HALF, "middle"), (STEPS, "after")):
        tensors, values = run(alone, until=steps).state()
        assert_close(load_file(on_two / f"{number} {moment}.safetensors"), tensors, f"step {steps}")
        for rank in (0, 1):
            theirs = json.loads((on_two / f"{number} {moment}.{rank}.json").read_text())
            assert theirs["step"] == values["step"]
            assert [point["l0"] for point in theirs["history"]] == [point["l0"] for point in values["history"]]
            assert [point["error"] for point in theirs["history"]] == pytest.approx([point["error"] for point in values["history"]], rel=1e-5)
    assert_close(load_file(on_two / f"{number} folded.safetensors"), alone.fold().tensors(), "the folded dictionary")


@pytest.mark.parametrize(("number", "name"), [(list(cases()).index(name), name) for name in RESUMED])
def test_a_checkpoint_is_the_same_file_on_one_device_and_on_two(on_two: Path, number: int, name: str) -> None:
    middle, after = (load_file(on_two / f"{number} {moment}.safetensors") for moment in ("middle", "after"))
    assert_same(load_file(on_two / f"{number} loaded.safetensors"), middle)
    assert_same(load_file(on_two / f"{number} resumed.safetensors"), after)

    straight, alone = trainer_of(name), trainer_of(name)
    begun_on_one = copied(run(straight, until=HALF).state())
    assert_same(load_file(on_two / f"{number} taken over.safetensors"), begun_on_one[0])
    assert_close(load_file(on_two / f"{number} taken over and finished.safetensors"), run(straight).state()[0], "one, then two")

    alone.load_state(middle, json.loads((on_two / f"{number} middle.0.json").read_text()))
    assert_same(alone.state()[0], middle)
    assert_close(run(alone).state()[0], straight.state()[0], "two, then one")


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_holds_half_of_the_latents_and_sums_are_all_that_is_exchanged(on_two: Path, rank: int) -> None:
    for measured in json.loads((on_two / f"memory.{rank}.json").read_text()).values():
        assert set(measured["rows"].values()) == {12}
        assert {"W_enc", "W_dec", "b_enc", "threshold_parameter", "second.W_enc", "second.W_dec", "last"} <= measured["rows"].keys()
        assert measured["exchanged"] == ["all_reduce"]


def test_a_sick_dictionary_is_stopped_by_both_with_the_sentence_of_one(on_two: Path) -> None:
    expected = [said(poisoned_trainer(None)), said(silent_trainer(None)), said(damaged_trainer(None))]
    assert [re.search("its error is nan|no latent fires|its weights are not finite", sentence) is not None for sentence in expected] == 3 * [True]
    assert [json.loads((on_two / f"sick.{rank}.json").read_text())["said"] for rank in (0, 1)] == [expected, expected]


def test_the_error_of_one_process_ends_both_and_is_raised_as_it_was(on_two: Path) -> None:
    assert (on_two / "ended").read_text() == FULL
    assert multiprocessing.active_children() == []


def wait_for_ever(shards: Shards, folder: Path) -> None:
    (folder / str(shards.rank)).write_text(str(os.getpid()))
    time.sleep(600)


def test_processes_end_with_the_one_that_started_them_even_where_interrupts_are_ignored(tmp_path: Path) -> None:
    script = (
        "import pathlib, signal, sys, test_sharding as t\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "if __name__ == '__main__': t.in_processes(t.wait_for_ever, (pathlib.Path(sys.argv[1]),), t.devices_of('cpu', 2))"
    )
    where = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    parent = subprocess.Popen([sys.executable, "-c", script, tmp_path], env=os.environ | where)
    while len(pids := [int(path.read_text() or 0) for path in tmp_path.iterdir()]) < 2 or not all(pids):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < until, alive
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """One that has ended and is not yet buried is not alive."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_tensor_without_shards_is_whole_as_it_is() -> None:
    tensor = torch.ones(3)
    assert whole(tensor) is tensor


# What cannot be


def test_more_shards_than_gpus_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.anatomy.device_of", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of("cuda", 2) == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(ConfigError, match=r"^training.shards is 4; expected at most one for each of the 2 GPUs of this machine; lower .*$"):
        devices_of("auto", 4)
    with pytest.raises(ConfigError, match=r"^device is 'cuda:1'; expected .* 2 training.shards .*; write cuda, cpu or auto$"):
        devices_of("cuda:1", 2)


def test_a_width_that_cannot_be_dealt_out_evenly_is_said_with_the_suite_file(tiny_suite: dict[str, Any]) -> None:
    import yaml

    with pytest.raises(ConfigError) as caught:
        parse_suite(yaml.safe_dump(tiny_suite), ["training.shards=3"])
    assert str(caught.value).splitlines()[0] == (
        "dictionaries[0].widths has 64; expected a multiple of the 3 shards it is dealt out to; change it or training.shards"
    )


# The pipeline


def trained(tiny_suite: dict[str, Any], store: Path, disturb: Callable[[], None] | None = None, **training: Any) -> dict[str, Tensor]:
    """Train L00.mlp_out, as the task does, beside which `disturb` runs; gives the tensors of its dictionary."""
    import yaml

    from core.site import Site
    from storage.catalogue import Catalogue
    from tasks.harvest import harvest_blocks
    from tasks.tokenise import tokenise
    from tasks.train import train_site

    settings = [f"training.{name}={value}" for name, value in ({"tokens": 23_040, "checkpoint_steps": 30} | training).items()]
    site = Site(0, "mlp_out")
    catalogue = Catalogue(parse_suite(yaml.safe_dump(tiny_suite), settings), store, str(site))
    tokenise.fn(catalogue)
    harvest_blocks.fn(catalogue)
    if disturb:
        threading.Thread(target=disturb, daemon=True).start()
    train_site.fn(catalogue, site)
    (spec,) = catalogue.sites[site]
    return catalogue.folder(spec).load().tensors()


@pytest.mark.long
def test_a_site_in_two_processes_of_which_one_dies_goes_on_from_its_checkpoint_to_the_same_dictionary(
    tiny_suite: dict[str, Any], tmp_path: Path
) -> None:
    dictionaries = tmp_path / "dictionaries/L00.mlp_out"
    alone = trained(tiny_suite, tmp_path)
    (folder,) = dictionaries.iterdir()
    (tmp_path / "dictionaries").rename(tmp_path / "alone")

    def kill_after_a_checkpoint() -> None:
        while not (dictionaries / folder.name / "checkpoint.json").exists():
            time.sleep(0.005)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(JumpsuiteError, match=r"that share a dictionary was ended by SIGKILL; .* run again"):
        trained(tiny_suite, tmp_path, kill_after_a_checkpoint, shards=2)
    assert multiprocessing.active_children() == []
    assert sorted(path.name.partition("-")[0] for path in (dictionaries / folder.name).iterdir()) == ["checkpoint.json", "step"]

    shared = trained(tiny_suite, tmp_path, shards=2)
    assert [path.name for path in dictionaries.iterdir()] == [folder.name], "the number of shards is no part of the name"
    record = json.loads((dictionaries / folder.name / "dictionary.json").read_text())
    assert record["history"][-1]["step"] == 90
    for name, tensor in alone.items():
        off = float((shared[name] - tensor).abs().max() / tensor.abs().max())
        assert off <= 1e-2, f"{name} is off by {off:.2g}: 90 steps make more of rounding than a few"
