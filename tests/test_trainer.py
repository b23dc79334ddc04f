"""Training: schedules, one step by hand, resuming to the bit, dictionaries side by side, sickness, and a known sparse code found again."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from core.dictionary import Dictionary
from core.errors import SickDictionary
from core.fidelity import row_fidelity
from core.objective import loss
from core.site import Site
from core.spec import DictionarySpec
from core.statistics import Moments, Normaliser
from core.trainer import CHECK_STEPS, Trainer, learning_rate_factor, sparsity_warmth, train_together
from core.training import Training

CPU = torch.device("cpu")
D, BATCH = 8, 16
PLAIN = Normaliser(torch.zeros(D), math.sqrt(D))


def training_of(**fields: Any) -> Training:
    short = {
        "recipe": "gemma-scope",
        "tokens": 100 * BATCH,
        "batch_rows": BATCH,
        "learning_rate": 1e-2,
        "learning_rate_warmup": 10,
        "sparsity_warmup": 20,
        "bandwidth": 0.2,
        "threshold_init": 0.1,
        "threshold_parameter": "linear",
    }
    return Training(**(short | fields))


def spec_of(steps: int = 100, **fields: Any) -> DictionarySpec:
    usual = {"architecture": "jumprelu", "width": 24, "target_l0": 4.0, "l0_coefficient": None, "seed": 0}
    return DictionarySpec(site=Site(3, "mlp_out"), tokens=steps * BATCH, **(usual | fields))


def batch(t: int) -> Tensor:
    return torch.randn(BATCH, D, generator=torch.Generator().manual_seed(t))


def run(trainer: Trainer, until: int | None = None) -> Trainer:
    while not trainer.done and trainer.step != until:
        trainer.train_on(batch(trainer.step))
    return trainer


def copied(state: tuple[dict[str, Tensor], dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state as it comes back from a store."""
    return {name: tensor.clone() for name, tensor in state[0].items()}, json.loads(json.dumps(state[1]))


def assert_same_to_the_bit(one: Trainer, other: Trainer) -> None:
    (tensors, values), (other_tensors, other_values) = one.state(), other.state()
    assert tensors.keys() == other_tensors.keys()
    moments = 2 if one.training.adam_beta1 else 1
    assert len(tensors) == 5 * (1 + moments) + 1, "of each parameter: itself and Adam's moments; and the step each latent moved last"
    for name, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[name]), name
    assert values == other_values


def never_sick(trainer: Trainer, sickness: SickDictionary) -> None:
    raise sickness


# Schedules


def test_the_learning_rate_rises_along_a_cosine_from_a_tenth_to_all():
    training = training_of(learning_rate_warmup=1_000)
    factors = [learning_rate_factor(step, 10_000, training) for step in (0, 250, 500, 750, 1_000, 9_999)]
    quarter = (1 - math.sqrt(0.5)) / 2
    assert factors == pytest.approx([0.1, 0.1 + 0.9 * quarter, 0.55, 1 - 0.9 * quarter, 1, 1])


def test_the_learning_rate_falls_linearly_to_zero_over_its_last_share():
    training = training_of(learning_rate_warmup=0, learning_rate_decay=0.2)
    factors = [learning_rate_factor(step, 1_000, training) for step in (0, 799, 800, 850, 900, 999, 1_000)]
    assert factors == pytest.approx([1, 1, 1, 0.75, 0.5, 0.005, 0])


def test_warm_up_and_decay_that_overlap_multiply():
    training = training_of(learning_rate_warmup=100, learning_rate_decay=1.0)
    assert learning_rate_factor(50, 200, training) == pytest.approx(0.55 * 0.75)


def test_the_sparsity_penalty_is_switched_on_linearly():
    assert [sparsity_warmth(step, 30_000, 10_000) for step in (0, 2_500, 10_000, 20_000)] == [0, 0.25, 1, 1]
    assert sparsity_warmth(0, 100, 0) == 1


def test_the_price_of_l1_may_have_a_warm_up_of_its_own():
    shared, apart = training_of(sparsity_warmup=20), training_of(sparsity_warmup=20, l1_warmup=5)
    assert [shared.warmup_of(name) for name in ("jumprelu", "relu-l1", "gated")] == [20, 20, 20]
    assert [apart.warmup_of(name) for name in ("jumprelu", "relu-l1", "gated")] == [20, 5, 5]
    assert Trainer(spec_of(400, architecture="gated"), apart, PLAIN, CPU).sparsity_warmup == 5


def test_a_warm_up_below_one_is_a_share_of_all_steps():
    shares, steps = training_of(learning_rate_warmup=0.05), training_of(learning_rate_warmup=50)
    for step in (0, 1, 20, 49, 50, 500, 800, 999):
        assert learning_rate_factor(step, 1_000, shares) == pytest.approx(learning_rate_factor(step, 1_000, steps))
        assert sparsity_warmth(step, 1_000, 0.8) == pytest.approx(sparsity_warmth(step, 1_000, 800))


# Steps


@pytest.mark.parametrize("threshold_parameter", ["linear", "log"])
def test_thresholds_may_begin_where_a_multiple_of_the_target_fires_each_latent_as_often_as_the_others(threshold_parameter):
    rows = torch.randn(4_000, D, generator=torch.Generator().manual_seed(0))
    training = training_of(threshold_start=2.0, threshold_parameter=threshold_parameter, learning_rate=1e-9)
    trainer = Trainer(spec_of(), training, PLAIN, CPU)
    trainer.train_on(rows)
    active = trainer.dictionary.pre_activations(rows / math.sqrt(D)) > trainer.dictionary.threshold
    assert float(active.sum(1).float().mean()) == pytest.approx(8, rel=0.01), "twice the target of 4"
    assert active.float().mean(0).tolist() == pytest.approx([8 / 24] * 24, rel=0.01)


def test_the_gates_of_a_gated_dictionary_may_begin_as_jumprelu_s_thresholds_do():
    rows = torch.randn(4_000, D, generator=torch.Generator().manual_seed(0))
    training = training_of(threshold_start=2.0, learning_rate=1e-9, l0_control=0.01)
    gated, jumprelu = (Trainer(spec_of(architecture=name), training, PLAIN, CPU) for name in ("gated", "jumprelu"))
    gated.train_on(rows)
    jumprelu.train_on(rows)
    gate, magnitude = gated.dictionary.gate_and_magnitude(rows / math.sqrt(D))
    assert (gate > 0).float().mean(0).tolist() == pytest.approx([8 / 24] * 24, rel=0.01), "twice the target of 4"
    torch.testing.assert_close(-gated.dictionary.b_gate, jumprelu.dictionary.threshold, rtol=0, atol=1e-6)
    torch.testing.assert_close(magnitude, jumprelu.dictionary.pre_activations(rows / math.sqrt(D)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [2, 100])
@pytest.mark.parametrize("l0", [1e-6, 24.0, 1e308, math.inf])
def test_however_few_the_rows_and_whatever_the_l0_asked_for_something_fires_at_the_start(rows, l0):
    dictionary = Trainer(spec_of(), training_of(), PLAIN, CPU).dictionary
    x = torch.randn(rows, D, generator=torch.Generator().manual_seed(0))
    dictionary.start_thresholds(x, l0 / 24)
    assert (dictionary.pre_activations(x) > dictionary.threshold).any()


@pytest.mark.parametrize("threshold_parameter", ["linear", "log"])
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_a_step_is_adam_by_hand_on_the_projected_gradient_then_renormalised(beta1, threshold_parameter):
    training = training_of(adam_beta1=beta1, threshold_parameter=threshold_parameter, learning_rate_decay=0.5)
    trainer = Trainer(spec_of(20), training, PLAIN, CPU)
    first = {name: torch.zeros_like(p) for name, p in trainer.dictionary.named_parameters()}
    second = {name: torch.zeros_like(p) for name, p in trainer.dictionary.named_parameters()}
    for t in range(15):
        before = {name: p.detach().clone() for name, p in trainer.dictionary.named_parameters()}
        trainer.dictionary.zero_grad()
        loss(trainer.dictionary, batch(t) / math.sqrt(D), trainer.spec, training, t / 20)[0].backward()
        gradients = {name: p.grad.clone() for name, p in trainer.dictionary.named_parameters()}
        rows = before["W_dec"]
        gradients["W_dec"] -= (gradients["W_dec"] * rows).sum(1, keepdim=True) * rows

        trainer.train_on(batch(t))

        warm = 0.1 + 0.9 * 0.5 * (1 - math.cos(math.pi * t / 10)) if t < 10 else 1.0
        rate = 1e-2 * warm * min(1.0, (20 - t) / 10)
        for name, p in trainer.dictionary.named_parameters():
            first[name] = beta1 * first[name] + (1 - beta1) * gradients[name]
            second[name] = 0.999 * second[name] + 0.001 * gradients[name] ** 2
            m, v = first[name] / (1 - beta1 ** (t + 1)), second[name] / (1 - 0.999 ** (t + 1))
            expected = before[name] - rate * m / (v.sqrt() + 1e-8)
            if name == "W_dec":
                expected = expected / expected.norm(dim=1, keepdim=True)
            elif name == "threshold_parameter" and threshold_parameter == "linear":
                expected = expected.clamp(min=1e-6)
            torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6, msg=lambda text, name=name, t=t: f"{name} at step {t}: {text}")
    assert trainer.step == 15


def test_training_sees_normalised_rows():
    """Rows shifted and scaled, with a normaliser that takes both back, train the same dictionary."""
    plain = Trainer(spec_of(20), training_of(), Normaliser(torch.zeros(D), 1.0), CPU)
    moved = Trainer(spec_of(20), training_of(), Normaliser(torch.full((D,), 4.0), 2.0), CPU)
    for t in range(20):
        x = (batch(t) * 64).round() / 64  # so that shifting loses no digit
        plain.train_on(x)
        moved.train_on(2 * x + 4)
    assert_same_to_the_bit(plain, moved)


def test_decoder_rows_stay_of_unit_norm_throughout():
    trainer = Trainer(spec_of(30), training_of(learning_rate=0.1), PLAIN, CPU)
    while not trainer.done:
        run(trainer, trainer.step + 1)
        torch.testing.assert_close(trainer.dictionary.W_dec.norm(dim=1), torch.ones(24))


# Resuming


@pytest.mark.parametrize("half", [0, 1, 37, 50, 99])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"recipe": "short-run", "threshold_start": 3.0},
        {"threshold_parameter": "log", "adam_beta1": 0.9, "learning_rate_decay": 0.3, "inputs": "centred"},
    ],
)
def test_a_training_that_was_stopped_and_loaded_ends_in_the_same_bits(half, fields):
    training = training_of(**fields)
    straight = run(Trainer(spec_of(), training, PLAIN, CPU))
    stopped = run(Trainer(spec_of(), training, PLAIN, CPU), until=half)
    resumed = Trainer(spec_of(), training, PLAIN, CPU)
    resumed.load_state(*copied(stopped.state()))
    assert resumed.step == half
    assert_same_to_the_bit(run(resumed), straight)
    folded, expected = resumed.dictionary.fold(PLAIN).tensors(), straight.dictionary.fold(PLAIN).tensors()
    assert all(torch.equal(folded[name], expected[name]) for name in expected)


def test_a_loaded_trainer_and_the_one_it_came_from_do_not_touch_each_other():
    straight = run(Trainer(spec_of(), training_of(), PLAIN, CPU))
    source, branch = run(Trainer(spec_of(), training_of(), PLAIN, CPU), until=60), Trainer(spec_of(), training_of(), PLAIN, CPU)
    branch.load_state(*source.state())
    assert_same_to_the_bit(run(branch), straight)
    assert source.step == 60
    assert_same_to_the_bit(run(source), straight)


def test_the_history_has_a_point_every_so_many_steps_and_at_the_end():
    trainer = run(Trainer(spec_of(120), training_of(), PLAIN, CPU))
    assert [point["step"] for point in trainer.history] == [CHECK_STEPS, 2 * CHECK_STEPS, 120]


# Side by side

PAIR = ({"width": 24, "target_l0": 4.0}, {"width": 40, "target_l0": None, "l0_coefficient": 0.1, "seed": 1})


def test_two_dictionaries_trained_together_equal_each_alone_to_the_bit():
    alone = [run(Trainer(spec_of(100 - 30 * index, **fields), training_of(), PLAIN, CPU)) for index, fields in enumerate(PAIR)]
    together = [Trainer(trainer.spec, training_of(), PLAIN, CPU) for trainer in alone]
    read: list[int] = []

    def reader(t: int) -> Tensor:
        read.append(t)
        return batch(t)

    assert list(train_together(together, reader, never_sick)) == list(range(1, 101))
    assert read == list(range(100)), "each batch is read once, for both"
    for one, other in zip(alone, together, strict=True):
        assert_same_to_the_bit(one, other)


def test_trainers_at_different_steps_each_wait_for_the_batch_they_have_not_seen():
    alone = [run(Trainer(spec_of(**fields), training_of(), PLAIN, CPU)) for fields in PAIR]
    together = [run(Trainer(spec_of(**fields), training_of(), PLAIN, CPU), until=until) for fields, until in zip(PAIR, (63, 20), strict=True)]
    assert list(train_together(together, batch, never_sick)) == list(range(21, 101))
    for one, other in zip(alone, together, strict=True):
        assert_same_to_the_bit(one, other)


def test_trainers_that_leave_off_go_no_further_though_one_of_them_is_ahead_and_end_as_if_they_had_not():
    alone = [run(Trainer(spec_of(**fields), training_of(), PLAIN, CPU)) for fields in PAIR]
    together = [run(Trainer(spec_of(**fields), training_of(), PLAIN, CPU), until=until) for fields, until in zip(PAIR, (63, 20), strict=True)]
    assert list(train_together(together, batch, never_sick, stop=40)) == list(range(21, 41))
    assert [trainer.step for trainer in together] == [63, 40]
    assert list(train_together(together, batch, never_sick)) == list(range(41, 101))
    for one, other in zip(alone, together, strict=True):
        assert_same_to_the_bit(one, other)


# Sickness


def together_with_a_well_one(sick: Trainer) -> list[tuple[Trainer, str]]:
    """Train beside a healthy dictionary, which must end as if alone; gives who fell sick, and what was said."""
    alone, beside = run(well_trainer()), well_trainer()
    reports: list[tuple[Trainer, str]] = []
    list(train_together([sick, beside], batch, lambda trainer, sickness: reports.append((trainer, str(sickness)))))
    assert sick.sick
    assert_same_to_the_bit(alone, beside)
    return reports


def well_trainer() -> Trainer:
    return Trainer(spec_of(150), training_of(), PLAIN, CPU)


def test_inputs_that_are_not_numbers_stop_their_dictionary_by_name_and_the_other_goes_on():
    poisoned = Trainer(spec_of(300, width=40), training_of(), Normaliser(torch.full((D,), math.nan), 1.0), CPU)
    ((trainer, sentence),) = together_with_a_well_one(poisoned)
    assert trainer is poisoned
    assert "L03.mlp_out width_40_l0_4 was stopped at step 50 of 300: its error is nan" in sentence
    assert poisoned.step == CHECK_STEPS


def test_one_value_that_is_not_a_number_is_seen_at_the_next_look():
    trainer, poisoned = Trainer(spec_of(300), training_of(), PLAIN, CPU), batch(7)
    poisoned[3, 2] = math.nan
    reports: list[str] = []
    list(train_together([trainer], lambda t: poisoned if t == 7 else batch(t), lambda _, sickness: reports.append(str(sickness))))
    assert ["its error is nan" in report for report in reports] == [True]
    assert trainer.step == CHECK_STEPS


def test_an_l0_that_never_falls_is_stopped_by_name():
    """log(threshold) moves a learning rate a step: from 0.001, 400 steps of 1e-4 lead nowhere."""
    stuck = Trainer(
        spec_of(400, width=64, target_l0=2.0), training_of(threshold_parameter="log", threshold_init=1e-3, learning_rate=1e-4), PLAIN, CPU
    )
    ((trainer, sentence),) = together_with_a_well_one(stuck)
    assert trainer is stuck
    assert "L03.mlp_out width_64_l0_2 was stopped at step 200 of 400: its L0 is stuck at" in sentence
    assert "expected at most 8" in sentence


def test_a_stuck_l0_is_told_what_moves_it_in_its_own_architecture():
    stuck = Trainer(spec_of(400, width=64, target_l0=2.0, architecture="relu-l1"), training_of(l0_control=1e-6), PLAIN, CPU)
    ((_, sentence),) = together_with_a_well_one(stuck)
    assert "its L0 is stuck at" in sentence
    assert "so raise that or train longer" in sentence
    assert "threshold" not in sentence


def test_a_dictionary_in_which_nothing_fires_is_stopped_by_name():
    silent = Trainer(spec_of(300), training_of(threshold_init=50.0), PLAIN, CPU)
    ((trainer, sentence),) = together_with_a_well_one(silent)
    assert trainer is silent
    assert "no latent fires" in sentence


@pytest.mark.parametrize("steps", [100, 200, 400])
def test_an_l0_that_is_still_falling_at_half_time_is_left_to_fall(steps):
    """Slow at first, and far from its target half-way; from each look to the next it falls by more than a twentieth."""
    trainer = Trainer(
        spec_of(steps, width=64, target_l0=3.0),
        training_of(threshold_init=1e-3, learning_rate=0.3 / steps, sparsity_warmup=0, target_l0_coefficient=1.0, bandwidth=0.3),
        PLAIN,
        CPU,
    )
    run(trainer)
    l0_at = {point["step"]: point["l0"] for point in trainer.history}
    assert l0_at[max(steps // 2, CHECK_STEPS)] > 4 * 3, "the premise"
    assert trainer.done


# What it is for


def sparse_rows(num_features: int, dimensions: int, active: float) -> Callable[[int, int], Tensor]:
    """Rows that are sums of about `active` of the known features, each between 0.5 and 1.5 long, off the origin."""
    features = torch.nn.functional.normalize(torch.randn(num_features, dimensions, generator=torch.Generator().manual_seed(0)))

    def rows(seed: int, num: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        fires = torch.rand(num, num_features, generator=generator) < active / num_features
        return 3.0 + 7 * (fires * (0.5 + torch.rand(num, num_features, generator=generator))) @ features

    return rows


@pytest.mark.parametrize("objective", ["per-token", "batch-mean"])
def test_a_short_training_on_a_known_sparse_code_reaches_its_target_l0_and_explains_it(objective):
    rows, target = sparse_rows(128, 64, 5), 5.0
    normaliser = Moments.of(rows(1, 4_096)).normaliser("centred")
    training = Training(
        recipe="gemma-scope",
        tokens=1_000 * 128,
        batch_rows=128,
        inputs="centred",
        learning_rate=3e-3,
        learning_rate_warmup=50,
        learning_rate_decay=0.3,
        bandwidth=0.05,
        threshold_init=0.01,
        threshold_parameter="linear",
        sparsity_warmup=200,
        target_l0_objective=objective,
        target_l0_coefficient=0.05,
    )
    spec = DictionarySpec(Site(0, "resid_post"), "jumprelu", 128, target, None, 0, training.tokens)
    trainer = Trainer(spec, training, normaliser, CPU)
    for _ in train_together([trainer], lambda t: rows(10 + t, 128), never_sick):
        pass
    held_out = rows(2, 8_192)
    scored = row_fidelity(trainer.dictionary.fold(normaliser), [held_out], Moments.of(held_out).mean)
    assert scored.l0 == pytest.approx(target, rel=0.2)
    assert scored.fvu < 0.4


def test_a_training_that_began_from_released_weights_goes_on_to_the_bit_and_still_knows_where_it_began() -> None:
    torch.manual_seed(0)
    released = Dictionary(torch.randn(D, 24), torch.randn(24), torch.randn(24, D), torch.randn(D), torch.rand(24))
    begun = Trainer(spec_of(), training_of(), PLAIN, CPU)
    begun.begin_from(released, {"place": "hf://org/saes", "weights": "abc"})
    assert torch.allclose(begun.fold().reconstruct(batch(0)), released.reconstruct(batch(0)), atol=1e-4)
    for t in range(10):
        begun.train_on(batch(t))
    resumed = Trainer(spec_of(), training_of(), PLAIN, CPU)
    tensors, values = begun.state()
    resumed.load_state({name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(values)))
    for t in range(10, 20):
        begun.train_on(batch(t))
        resumed.train_on(batch(t))
    assert resumed.begun_from == {"place": "hf://org/saes", "weights": "abc"}
    for name, tensor in begun.fold().tensors().items():
        assert torch.equal(resumed.fold().tensors()[name], tensor)
