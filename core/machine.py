"""What this machine is, and how fast it multiplies, by a short measurement: specifications and CPU flags tell less than a product does."""

import platform
import time
from pathlib import Path

import torch

WORTH_A_WORD = 1.5
"""Times that bfloat16 must be slower than float32 before anybody is told: less is within the noise of a busy machine."""


def hardware(device: torch.device) -> str:
    """What a device is, in words: the GPU's name, or the processor's with its cores."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def flop_a_second(device: torch.device, dtype: torch.dtype = torch.float32, size: int = 1_024, seconds: float = 0.5) -> float:
    """What a product of two size x size matrices reaches on a device, in FLOP/s."""
    a = torch.randn(size, size, device=device).to(dtype)
    (a @ a).sum().item()
    began, products = time.monotonic(), 0
    while time.monotonic() - began < seconds or not products:
        (a @ a)[0, 0].item()
        products += 1
    return 2 * size**3 * products / (time.monotonic() - began)


def bfloat16_slowdown(device: torch.device, seconds: float = 0.2) -> float:
    """How many times slower a bfloat16 product is than a float32 one; below 1 where it is quicker, as on most GPUs.

    A CPU without instructions for bfloat16 (AVX-512 BF16, AMX), as many laptops and virtual machines have, takes several times longer.
    """
    return flop_a_second(device, torch.float32, seconds=seconds) / flop_a_second(device, torch.bfloat16, seconds=seconds)


def slow_bfloat16(fields: list[str], slowdown: float) -> str | None:
    """What to tell who asked for bfloat16 in these fields of the suite file; None where there is nothing to say."""
    if not fields or slowdown < WORTH_A_WORD:
        return None
    remedy = " and ".join(f"{field}=float32" for field in fields)
    return f"this machine multiplies bfloat16 {slowdown:.1f} times slower than float32; {remedy} would be quicker here"
