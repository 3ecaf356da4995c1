"""A Ray cluster: how it is joined, how checkpoints travel there, and work of many parts that it carries out.

    with joined("auto") as ray:
        for episodes in carried_out(ray, partial(several, config), parts, model=ship(ray, "execution")):
            ...                                           # in the order of the parts

A worker needs this package, and no disk in common: checkpoints go through Ray's object store, and are checked by their
manifest. Ray's own processes talk in pickle: let nobody into a cluster whom you would not let onto its machines.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from skills import files
from skills.errors import Unavailable

log = logging.getLogger(__name__)
Part = TypeVar("Part")
Result = TypeVar("Result")

LOCAL = "local"
INSTALL = "--ray needs Ray, here and on every node: pip install -e '.[ray]' in a checkout"
START = "start one with `ray start --head`, and on each further machine `ray start --address HEAD:6379`; or --ray local"
AHEAD = 3  # parts for each CPU that are under way, or done and not yet taken
TRIES = 5  # workers that may be lost over one part
LOOKING = 10.0  # [s] between two looks whether anybody is left to wait for


@dataclass(frozen=True)
class Shipped:
    """A checkpoint in the object store, or a class."""

    name: str  # of its folder, for messages
    sha256: str  # of its manifest
    # Reference to their bytes by name; in a list, Ray passes it on as it is. Empty for a class of the user's own, which
    # every node can import
    files: list[Any]


def ship(ray: Any, name_or_path: str | Path) -> Shipped:
    """A checkpoint that was loaded here before: whatever is wrong with it has been said."""
    from saycan_qt import atomic
    from saycan_qt.learning import checkpoint, fit

    folder = atomic.newest(checkpoint.resolve(name_or_path))
    names = checkpoint.CONFIG, checkpoint.MODEL, checkpoint.PROVENANCE, checkpoint.MANIFEST
    content = {name: files.read(folder / name, fit.WEIGHTS) for name in names}
    return Shipped(folder.name, atomic.sha256(content[checkpoint.MANIFEST]), [ray.put(content)])


def received(model: Shipped, device: str = "cpu") -> Any:
    """The policy, on a worker."""
    from saycan_qt.learning import checkpoint

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, model.name)
        folder.mkdir()
        for name, content in load_ray().get(model.files[0]).items():
            (folder / name).write_bytes(content)
        return checkpoint.load(folder, device)


def load_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise Unavailable(INSTALL) from None


def join(address: str, cpus: int) -> Any:
    """Ray, in a cluster; with `local` in one of its own that has so many CPUs. Its lines are not for our standard
    output. Raises Unavailable, and InvalidRequest for what is no address."""
    from skills.wire.conventions import split_address  # here, so that workers do not load gRPC

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if ":" in address:  # Ray itself would try for minutes
            socket.create_connection(split_address(address.removeprefix("ray://")), timeout=10).close()
        ray = load_ray()
        own = {"num_cpus": cpus, "include_dashboard": False} if address == LOCAL else {}
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
        reason = str(error).strip().splitlines()[0]
        raise Unavailable(f"cannot join the Ray cluster {address!r}: {reason}; {START}") from None
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets its own, under which a server would not drain
    ray._private.worker._worker_logs_enabled = False  # deaths are told here, in a line each
    return ray


@contextlib.contextmanager
def joined(address: str, cpus: int) -> Iterator[Any]:
    ray = join(address, cpus)
    try:
        yield ray
    finally:
        ray.shutdown()


def carried_out(
    ray: Any,
    work: Callable[[Part, Any], Result],  # (part, policy or None): a function of a module, or a partial of one
    parts: Iterable[Part],
    model: Shipped | None = None,
) -> Iterator[Result]:
    """What work(part, policy) returns for each part, in their order, by workers of one CPU each. What a worker or a
    machine was at when it was lost is done again by another one. The work's own errors are raised as they are;
    Unavailable where one part loses worker after worker, or no machine is left."""
    once = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(_carry_out)
    waiting = enumerate(parts)
    going: dict[Any, tuple[int, Part, int]] = {}  # Ray's reference -> the part's number, itself, how often it was tried
    done: dict[int, Result] = {}
    following = 0
    while True:
        most = AHEAD * _cpus(ray)
        for number, part in islice(waiting, max(0, most - len(going) - len(done))):
            going[once.remote(work, part, model)] = number, part, 1
        if not going:
            return
        for answer in ray.wait(list(going), num_returns=1, timeout=LOOKING)[0]:
            number, part, tries = going.pop(answer)
            try:
                done[number] = ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                why = type(error).__name__
                if tries == TRIES:
                    raise Unavailable(f"{tries} workers were lost over one part of the work ({why})") from None
                log.warning("a worker was lost (%s); what it was at is done again", why)
                going[once.remote(work, part, model)] = number, part, tries + 1
        while following in done:
            yield done.pop(following)
            following += 1


_policies: dict[str, Any] = {}  # of a worker: the last one that it was asked for


def _carry_out(work: Callable[[Any, Any], Any], part: Any, model: Shipped | None) -> Any:
    if model is None:
        return work(part, None)
    import torch

    torch.set_num_threads(1)
    if model.sha256 not in _policies:
        _policies.clear()
        _policies[model.sha256] = received(model)
    return work(part, _policies[model.sha256])


def _cpus(ray: Any) -> int:
    """Of the nodes that are there. Raises Unavailable where there are none."""
    if cpus := int(ray.cluster_resources().get("CPU", 0)):
        return cpus
    raise Unavailable(f"no node of the Ray cluster is left that has a CPU; run again once there are some: {START}")
