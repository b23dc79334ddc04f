"""The CUDA step against the dense one by autograd: on a GPU where there is one, else its kernels in Triton's interpreter, on the CPU
(which `conftest.py` switches on).

Shapes, sparsities, ties, silent and full rows, and products are those of `test_sparse_step.py`, smaller: the interpreter takes milliseconds
for every row and every latent.
"""

import logging
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux alone")

from test_sparse_step import (
    EPSILON,
    assert_moved_alike,
    dictionary_and_rows,
    dictionary_of,
    relative,
    spec_of,
    step_of,
    training_of,
    twin,
)

import core
from core import architectures, cuda_step, trainer
from core.adam import ROWS, Adam
from core.cuda_step import CudaStep
from core.dense_step import DenseStep
from core.jumprelu import JumpReLUDictionary
from core.sparse_step import SparseStep
from core.statistics import Normaliser
from core.trainer import Trainer

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
EXAMPLES = 300 if ON_GPU else settings().max_examples // 2  # the interpreter is slow


def on_device(dictionary: JumpReLUDictionary) -> JumpReLUDictionary:
    return twin(dictionary).to(DEVICE)


def rows_of(B: int, D: int, seed: int) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(seed)) / math.sqrt(D)


@settings(deadline=None, max_examples=EXAMPLES)
@given(
    shape=st.tuples(st.integers(1, 11), st.sampled_from([1, 2, 7, 16, 24]), st.sampled_from([1, 5, 31, 40] + [511, 512, 513, 2_000] * ON_GPU)),
    seed=st.integers(0, 10_000),
    theta=st.sampled_from([0.01, 0.3, 0.8, 2.0]),
    log_threshold=st.booleans(),
    bandwidth=st.sampled_from([0.001, 0.05, 0.7]),
    penalty=st.sampled_from(["linear", "per-token", "batch-mean"]),
    clip=st.sampled_from([None, 1e-3, 1e3]),
    rows=st.sampled_from(["mixed", "silent", "full", "some of each"]),
    dense_above=st.sampled_from([0.05, 1.0, 1.0, 1.0]),
    product=st.sampled_from(["float32", "bfloat16"]),
)
def test_a_cuda_step_has_the_loss_and_the_gradients_of_the_dense_one(
    shape, seed, theta, log_threshold, bandwidth, penalty, clip, rows, dense_above, product
):
    dictionary, x = dictionary_and_rows(shape, seed, rows, theta=theta, log_threshold=log_threshold)
    x, L = x.to(DEVICE), shape[2]
    objective = {} if penalty == "linear" else {"target_l0_objective": penalty, "target_l0_coefficient": 0.2}
    training = training_of(bandwidth=bandwidth, gradient_clip=clip, adam_epsilon=EPSILON, encoder_product=product, **objective)
    spec = spec_of(L, None if penalty == "linear" else 2.5)
    dense, sparse = on_device(dictionary), on_device(dictionary)
    before = {name: p.detach().clone() for name, p in dense.named_parameters()}
    error, l0 = step_of(DenseStep, dense, spec, training)(x, 1e-2 * EPSILON, 0.7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_step, "DENSE_ABOVE", dense_above)
        sparse_error, sparse_l0 = step_of(CudaStep, sparse, spec, training)(x, 1e-2 * EPSILON, 0.7)

    assert float(sparse_error) == pytest.approx(error, rel=1e-5)
    assert float(sparse_l0) == pytest.approx(l0, rel=1e-6)
    assert_moved_alike(sparse, dense, before)


@pytest.mark.long
@pytest.mark.parametrize(
    ("product", "beta1", "clip"), [("float32", 0.0, 0.5), ("float32", 0.9, None), ("bfloat16", 0.0, None), ("bfloat16", 0.9, 0.5)]
)
def test_many_cuda_steps_lead_where_dense_ones_lead(product, beta1, clip):
    """Latents that wait for their turn are moved as if they had been there all the time, a dense batch between sparse ones too. No z is near
    enough to a threshold for rounding to decide, so both see the same latents active in all steps."""
    D, L, steps = 16, 48, 8
    dictionary = dictionary_of(D, L, 3, theta=0.6)
    training = training_of(bandwidth=0.05, gradient_clip=clip, adam_beta1=beta1, adam_beta2=0.9, encoder_product=product, adam_epsilon=1e-3)
    spec = spec_of(L, 3.0)
    dense, sparse = on_device(dictionary), on_device(dictionary)
    reference, step = step_of(DenseStep, dense, spec, training), step_of(CudaStep, sparse, spec, training)
    with pytest.MonkeyPatch.context() as patch:
        for t in range(steps):
            patch.setattr(cuda_step, "DENSE_ABOVE", 0.0 if t == steps - 2 else 1.0)
            x = rows_of(6, D, t).to(DEVICE)
            (error, l0), (expected, expected_l0) = step(x, 1e-3, 1.0), reference(x, 1e-3, 1.0)
            assert float(error) == pytest.approx(expected, rel=1e-4), f"step {t}"
            assert float(l0) == pytest.approx(expected_l0, rel=1e-6), f"step {t}"
    assert int((step.adam.last_L < steps).sum()) > 0 or beta1, "the premise: some latents waited"
    for name, p in dense.named_parameters():
        assert relative(sparse.state_dict()[name], p.detach()) < 1e-4, name
    for name in ROWS:
        waited = step.adam.second[name] * (0.9 ** (steps - step.adam.last_L).float())[:, None]
        assert relative(waited, reference.adam.second[name]) < 1e-3, f"second moment of {name}"
    if step.copy:
        W_enc, rounding = sparse.W_enc.detach(), 0 if ON_GPU else 2**-7  # the interpreter cuts off where a GPU rounds
        torch.testing.assert_close(step.copy[0], W_enc.bfloat16(), rtol=rounding, atol=0)
        torch.testing.assert_close(step.copy[1], W_enc.norm(dim=1))


def test_a_value_at_its_threshold_is_not_active_and_is_within_the_window():
    """Ties, with numbers that binary fractions hold exactly: z = theta = 0.5, and z = theta +- epsilon / 2."""
    dictionary = JumpReLUDictionary(3, 3, seed=0, threshold_init=0.5, log_threshold=False)
    with torch.no_grad():
        dictionary.W_enc.copy_(torch.eye(3))
        dictionary.W_dec.copy_(torch.eye(3))
    dictionary = dictionary.to(DEVICE)
    x = torch.tensor([[0.5, 0.75, 0.25]], device=DEVICE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_step, "DENSE_ABOVE", 1.0)
        _, l0 = step_of(CudaStep, dictionary, spec_of(3), training_of(bandwidth=0.5, adam_epsilon=EPSILON))(x, 0.1 * EPSILON, 1.0)
    assert float(l0) == 1, "0.75 alone is above 0.5"
    torch.testing.assert_close(dictionary.threshold.detach().cpu() - 0.5, torch.tensor([-0.06, 0.0, 0.0]))  # as in test_sparse_step.py


@pytest.mark.long
@pytest.mark.parametrize("outlier", [0.0, 30.0])
def test_a_bfloat16_product_finds_every_entry_that_a_float32_product_finds(outlier):
    """On rows whose norms differ, with one dimension that outweighs all others, over several tiles of latents and pieces of rows."""
    D, L, B = (256, 4_096, 512) if ON_GPU else (64, 1_100, 12)
    dictionary = dictionary_of(D, L, 0, theta=0.25).to(DEVICE)
    x = rows_of(B, D, 0) * (torch.rand(B, 1, generator=torch.Generator().manual_seed(1)) * 2)
    x[:, 7] += outlier / math.sqrt(D)
    x = x.to(DEVICE) - dictionary.b_dec.detach()
    found = {}
    for product in ("float32", "bfloat16"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda_step, "DENSE_ABOVE", 1.0)
            patch.setattr(cuda_step, "CHUNK_ENTRIES", 5 * L)
            step = step_of(CudaStep, dictionary, spec_of(L), training_of(encoder_product=product, bandwidth=0.01))
            entries = step._entries(x)
        listed = list(zip(entries.row_E.tolist(), entries.latent_E.tolist(), entries.z_E.tolist(), strict=True))
        for b, (begin, end) in enumerate(zip(entries.start_B[:-1], entries.start_B[1:], strict=True)):
            assert all(row == b for row, _, _ in listed[begin:end])
            latents = [latent for _, latent, _ in listed[begin:end] if latent >= 0]
            assert latents == sorted(set(latents))
        found[product] = {(b, latent): z for b, latent, z in listed if latent >= 0}
    z_BL = torch.addmm(dictionary.b_enc.detach(), x, dictionary.W_enc.detach().T)
    expected = int((z_BL > dictionary.threshold.detach() - 0.005).sum())
    assert abs(len(found["float32"]) - expected) <= 2
    assert expected > 200
    assert len(found["float32"].keys() ^ found["bfloat16"].keys()) <= 2, "but for values that float32 itself rounds to either side"
    both = found["float32"].keys() & found["bfloat16"].keys()
    assert max(abs(found["float32"][at] - found["bfloat16"][at]) for at in both) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("product", ["float32", "bfloat16"])
def test_the_same_steps_end_in_the_same_bits_however_much_room_the_lists_have(product):
    D, L, ends = 16, 40, []
    for room in (0, 10_000):
        dictionary = dictionary_of(D, L, 3, theta=0.4).to(DEVICE)
        step = step_of(CudaStep, dictionary, spec_of(L, 3.0), training_of(bandwidth=0.1, encoder_product=product, gradient_clip=1.0))
        step.room = room
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda_step, "DENSE_ABOVE", 1.0)
            for t in range(3):
                step(rows_of(8, D, t).to(DEVICE), 1e-3, 1.0)
        ends.append({name: p.detach().clone() for name, p in dictionary.named_parameters()} | {"last": step.adam.last_L})
    for name, p in ends[0].items():
        assert torch.equal(p, ends[1][name]), name


@pytest.mark.long
def test_candidates_that_are_no_entries_change_no_bit():
    """Else the last bit of a row's norm, which a resumed run computes anew, could regroup a sum."""
    D, L, ends = 16, 160, []
    for slack in (1.0, 8.0):
        dictionary = dictionary_of(D, L, 3, theta=0.2).to(DEVICE)
        step = step_of(CudaStep, dictionary, spec_of(L, 3.0), training_of(bandwidth=0.01, encoder_product="bfloat16"))
        step.copy[1].mul_(slack)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda_step, "DENSE_ABOVE", 1.0)
            step(rows_of(8, D, 0).to(DEVICE), 1e-3, 1.0)
        ends.append(({name: p.detach().clone() for name, p in dictionary.named_parameters()}, step.room))
    assert ends[1][1] > ends[0][1], "the premise: the second had more candidates"
    for name, p in ends[0][0].items():
        assert torch.equal(p, ends[1][0][name]), name


@pytest.mark.long
@pytest.mark.parametrize("product", ["float32", "bfloat16"])
def test_a_trainer_that_was_stopped_goes_on_to_the_same_bits(product, monkeypatch):
    monkeypatch.setattr(trainer, "step_of", lambda *given, **_: CudaStep(*given[:4]))
    monkeypatch.setattr(cuda_step, "DENSE_ABOVE", 1.0)
    training = training_of(encoder_product=product, bandwidth=0.1, threshold_init=0.3, adam_beta1=0.0, gradient_clip=1.0, learning_rate=1e-2)

    def make() -> Trainer:
        return Trainer(spec_of(16, 3.0), training, Normaliser(torch.zeros(8), 1.0), DEVICE)

    def train(one: Trainer, until: int) -> Trainer:
        while one.step < until:
            one.train_on(rows_of(6, 8, one.step).to(DEVICE))
        return one

    whole = train(make(), 4)
    tensors, values = train(make(), 2).state()
    resumed = make()
    resumed.load_state({name: tensor.clone() for name, tensor in tensors.items()}, values)
    for name, tensor in train(resumed, 4).state()[0].items():
        assert torch.equal(tensor, whole.state()[0][name]), name


def test_each_device_has_its_step_and_cuda_without_triton_says_what_it_lacks(monkeypatch, caplog):
    dictionary, spec, training = JumpReLUDictionary(3, 4, seed=0, threshold_init=0.5, log_threshold=False), spec_of(4), training_of()
    adam = Adam({name: p.detach() for name, p in dictionary.named_parameters()}, 0.0, 0.999, 1e-8)

    def kind_on(device: str) -> type:
        return type(architectures.step_of(dictionary, adam, spec, training, torch.device(device)))

    assert kind_on("cpu") is SparseStep
    assert kind_on("mps") is DenseStep
    assert kind_on("cuda") is CudaStep
    for name in ("cuda_step", "triton_kernels"):  # not imported yet
        monkeypatch.delitem(sys.modules, f"core.{name}")
        monkeypatch.delattr(core, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with caplog.at_level(logging.WARNING):
        assert kind_on("cuda") is DenseStep
    assert "triton is not installed; pip install triton" in caplog.text
