"""Devices that a plan may be made for without having one: what their makers say of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    bfloat16: float
    """Dense products, FLOP a second."""
    float32: float
    """The same of float32 numbers, in TF32 where the device has it."""
    memory: int
    """Bytes."""


DEVICES = {
    "a100": Device(312e12, 156e12, 80 * 10**9),
    "h100": Device(989e12, 495e12, 80 * 10**9),
    "h200": Device(989e12, 495e12, 141 * 10**9),
    "l4": Device(121e12, 60e12, 24 * 10**9),
    "l40s": Device(362e12, 183e12, 48 * 10**9),
    "rtx-4090": Device(165e12, 83e12, 24 * 10**9),
    "tpu-v3": Device(123e12, 123e12, 32 * 10**9),
    "tpu-v5p": Device(459e12, 459e12, 95 * 10**9),
}
"""A TPU takes float32 products in bfloat16 passes; of the v3 a chip, two cores, is meant."""

UTILISATION = 0.5
"""Of a device's products, the share that training makes use of: what Gemma Scope measured, 45 ms for a batch of a 131k dictionary on 8 TPU v3
chips (arXiv:2408.05147, section 3.4)."""
