"""What a machine is told about its own speed."""

import torch

from core.machine import bfloat16_slowdown, flop_a_second, slow_bfloat16

CPU = torch.device("cpu")


def test_a_product_has_a_speed_and_one_type_is_so_many_times_slower_than_the_other() -> None:
    assert flop_a_second(CPU, size=64, seconds=0.01) > 1e6
    assert bfloat16_slowdown(CPU, seconds=0.01) > 0


def test_only_who_asks_for_bfloat16_where_it_is_slow_is_told_so() -> None:
    assert slow_bfloat16(["model.dtype"], 0.5) is None
    assert slow_bfloat16([], 5.0) is None
    advice = slow_bfloat16(["model.dtype", "training.encoder_product"], 4.96)
    assert advice == (
        "this machine multiplies bfloat16 5.0 times slower than float32; "
        "model.dtype=float32 and training.encoder_product=float32 would be quicker here"
    )
