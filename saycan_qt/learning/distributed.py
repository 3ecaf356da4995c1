"""Several processes that train one model, as `torchrun` starts them; a process alone is a world of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


@contextlib.contextmanager
def joined(device: str) -> Iterator[str]:
    """Within it, this process belongs to torchrun's group, if there is one. Yields the device to train on: each process
    on CUDA has its own."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if not dist.is_initialized():
        return value
    total = value.detach().to(_device(), copy=True)
    dist.all_reduce(total)
    return (total / world()).to(value.device)


def shared_count(weights: Tensor) -> Tensor:
    """What a weighted sum over this process's rows is divided by, so that the mean over the processes is the weighted
    mean over all rows; never less than a single row's."""
    return mean(weights.sum()).clamp_min(1.0 / world())


def first_ones(number: float) -> float:
    """The number that process 0 has."""
    if not dist.is_initialized():
        return number
    told = torch.tensor([number], dtype=torch.float64, device=_device())
    dist.broadcast(told, 0)
    return float(told)


def _device() -> str:
    """Where the processes' tensors meet."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
