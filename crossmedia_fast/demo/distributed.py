"""One process or several (torchrun): who draws which images, who speaks, what is averaged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module to call in training: distributed where there are several processes."""
        if self.size == 1:
            return module
        # No layer of the demo changes a buffer in training: nothing to broadcast.
        return DistributedDataParallel(module, broadcast_buffers=False)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        return self.sum(values) / self.size


class Batches:
    """Batches of indices for this process: shuffled anew each epoch, from seed and epoch alone.

    `batch_size` counts the images of all processes together, so that one process and several take
    the same steps.
    """

    def __init__(self, count: int, batch_size: int, seed: int, world: World) -> None:
        self._sampler: DistributedSampler[int] = DistributedSampler(
            range(count),  # type: ignore[arg-type]
            num_replicas=world.size,
            rank=world.rank,
            seed=seed,
        )
        self._size = max(1, -(-batch_size // world.size))

    def __len__(self) -> int:
        return -(-len(self._sampler) // self._size)

    def epoch(self, epoch: int) -> tuple[Tensor, ...]:
        self._sampler.set_epoch(epoch)
        return torch.tensor(list(self._sampler)).split(self._size)


@contextlib.contextmanager
def join_world(cpu_only: bool) -> Iterator[World]:
    """The world of this process: torchrun's environment variables say whether it has company."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available() and not cpu_only:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()
