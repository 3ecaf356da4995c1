"""Several processes that train one model, as `torchrun` starts them, or whoever else sets RANK, WORLD_SIZE, MASTER_ADDR
and MASTER_PORT; a process alone is a world of one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

GROUP = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what says of a process where its group meets


@contextlib.contextmanager
def joined(device: str) -> Iterator[str]:
    """Within it, this process belongs to the group that it was started in, if there is one. Yields the device to train
    on: each process on CUDA has its own. Raises ValueError for a group that cannot be joined and for a device that
    there is not."""
    if not _in_a_group():
        require_device(device)
        yield device
        return
    if device == "cuda":
        local = os.environ.get("LOCAL_RANK") or int(os.environ["RANK"]) % max(1, torch.cuda.device_count())
        device = f"cuda:{local}"
    require_device(device)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _in_a_group() -> bool:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return True
    size, number = os.environ.get("WORLD_SIZE", "1"), os.environ.get("RANK", "0")
    if size == "1" and number == "0":
        return False
    if missing := [name for name in GROUP if name not in os.environ]:
        raise ValueError(
            f"RANK {number} of WORLD_SIZE {size} asks for a group of processes, but there is no {missing[0]}; start "
            "them with torchrun, or unset both"
        )
    return True


def require_device(device: str) -> None:
    """Raises ValueError where PyTorch cannot use it."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"--device {device} cannot be used here: {why}") from None


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
