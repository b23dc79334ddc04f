"""Sharding: one dictionary's latents dealt out to several devices, for widths whose weights and moments do not fit on one.

All that belongs to a latent lies on one device: of n devices each has L / n rows of W_enc, W_dec and Adam's moments. b_dec and the
batch are on all of them. Then, with parameters that are DTensors, the step of `core/dense_step.py` is that of one device:

    z = (x - b_dec) W_enc + b_enc    B x L, to each device its columns: nothing is exchanged
    x_hat = f W_dec + b_dec          a sum over latents, of which each device has a part: B x D numbers are summed
    L0, the gradient of b_dec        likewise: B, and D
    the gradient's norm              likewise: one number for each parameter

DTensor does these sums where an operation needs them (`torch.distributed.tensor`), and the result is the same on all devices, to the bit.
What is stored is whole: it is put together in the main memory of the first process, never on a device.

DTensor is imported where shards are made: it takes two thirds as long to load as torch itself, and a dictionary on one device needs none of it.
"""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

from core.dictionary import Dictionary, TrainingDictionary
from core.statistics import Normaliser

FIRST = 0
"""The process that stores."""

SHARED = ("b_dec",)
"""The parameters that belong to no latent."""


class Shards:
    """The devices of one dictionary: one for each process of the process group, which must have gloo for tensors in main memory.

    Args:
        device: this process's.
    """

    def __init__(self, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self.device = device
        self.mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        self.rank = dist.get_rank()

    @property
    def stores(self) -> bool:
        """Whether it is for this process to store what is whole."""
        return self.rank == FIRST

    def share(self, width: int) -> int:
        """Latents of each process."""
        return width // self.mesh.size()

    def join(self, dictionary: TrainingDictionary, seed: int) -> None:
        """Make one dictionary of those that each process has made as wide as its share: the one that `seed` begins on a single device."""
        from torch.distributed.tensor import DTensor, Replicate, Shard

        dictionary.draw(seed, first=self.rank * len(dictionary.W_dec))
        for name, p in list(dictionary.named_parameters()):
            placement = Replicate() if name in SHARED else Shard(0)
            setattr(dictionary, name, nn.Parameter(DTensor.from_local(p.detach(), self.mesh, [placement])))

    def everywhere(self, x_BD: Tensor) -> Tensor:
        """A batch that every process has read."""
        from torch.distributed.tensor import DTensor, Replicate

        return DTensor.from_local(x_BD, self.mesh, [Replicate()])

    def agree(self, checkpoint: tuple[dict[str, Tensor], dict[str, Any]] | None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The checkpoint that the first process found, or None; on the others its tensors are empty, for `copy_whole` deals them out."""
        told = [checkpoint and (list(checkpoint[0]), checkpoint[1])]
        dist.broadcast_object_list(told, src=FIRST, device=torch.device("cpu"))
        if self.stores or told[0] is None:
            return checkpoint
        names, values = told[0]
        return {name: torch.empty(0) for name in names}, values


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether it is a DTensor: of all tensors only those have a mesh."""
    return hasattr(tensor, "device_mesh")


def own(dictionary: TrainingDictionary) -> TrainingDictionary:
    """A dictionary of this process's latents alone, in the same memory; where nothing is sharded, the dictionary itself."""
    if not is_sharded(dictionary.W_dec):
        return dictionary
    piece = copy.copy(dictionary)
    piece._parameters = {name: nn.Parameter(_local(p)) for name, p in dictionary.named_parameters()}
    return piece


def fold(dictionary: TrainingDictionary, normaliser: Normaliser) -> Dictionary:
    """`TrainingDictionary.fold`, which each process does for its own latents. Only the first has them all; the others have none."""
    piece = own(dictionary).fold(normaliser)
    if not is_sharded(dictionary.W_dec):
        return piece
    by_latent = {"W_enc": piece.W_enc.T, "b_enc": piece.b_enc, "W_dec": piece.W_dec, "threshold": piece.threshold}
    gathered: dict[str, Any] = {name: _gather(rows) for name, rows in by_latent.items()}
    return replace(piece, **gathered | {"W_enc": gathered["W_enc"].T.contiguous()})


def whole(tensor: Tensor) -> Tensor:
    """All shards of a tensor, in the main memory of the first process; empty on the others. A tensor without shards is whole as it is."""
    if not is_sharded(tensor):
        return tensor
    return _gather(_local(tensor)) if tensor.placements[0].is_shard() else _local(tensor)


def on_all(tensor: Tensor) -> Tensor:
    """A result whole on all processes: `float` of a sum over shards would give, in silence, this process's part of it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@torch.no_grad()
def copy_whole(source: Tensor, into: Tensor) -> None:
    """Put the first process's whole tensor where it belongs, each process its rows; `source` is not read on the others."""
    if not is_sharded(into):
        into.copy_(source)
        return
    piece = torch.empty(_local(into).shape, dtype=into.dtype)
    if dist.get_rank() != FIRST:
        dist.scatter(piece, src=FIRST)
    else:
        processes = dist.get_world_size()
        dist.scatter(piece, list(source.chunk(processes)) if into.placements[0].is_shard() else [source] * processes, src=FIRST)
    _local(into).copy_(piece)


def _gather(rows: Tensor) -> Tensor:
    """Every process's rows, of which each has the same number, one process's after the other's."""
    rows, processes = rows.cpu().contiguous(), dist.get_world_size()
    if dist.get_rank() != FIRST:
        dist.gather(rows, dst=FIRST)
        return rows.new_empty(0, *rows.shape[1:])
    gathered = rows.new_empty(processes * len(rows), *rows.shape[1:])
    dist.gather(rows, list(gathered.chunk(processes)), dst=FIRST)
    return gathered


@torch.no_grad()
def _local(tensor: Tensor) -> Tensor:
    """This process's part, in the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor
