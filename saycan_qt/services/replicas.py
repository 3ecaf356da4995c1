"""Copies of the models on a Ray cluster, behind one server: the least busy copy answers.

    replicas = Replicas(RayOptions(ray="auto"), threads=2)
    policy = replicas.load("execution")               # an Actor, often a Critic, as `checkpoint.load` gives

A checkpoint's files travel through Ray's object store, and every replica checks them by their manifest: a worker needs
this package, and no disk in common. What a replica computed when its process or its machine died, another one computes;
Ray starts it anew where there is room, and it is asked again once it holds the models. Ray's own processes talk in
pickle: let nobody into a cluster whom you would not let onto its machines.
"""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import tyro

from saycan_qt.services import own
from saycan_qt.services.cluster import LOCAL, Shipped, join, load_ray, received, ship
from saycan_qt.services.processes import keep_memory
from skills.embodiment import Embodiment
from skills.errors import Unavailable
from skills.types import Observation, Reader, blank, embodiment_of

log = logging.getLogger(__name__)

LOCAL_REPLICAS = 2
PLACING = 120.0  # [s] that a cluster has to start the replicas
WAITING = 10.0  # [s] that a question waits for some replica to come back, when none is there
LOOKING = 0.5  # [s] between two looks whether the server ends, while a replica is awaited
TRIES = 3  # replicas that may die of one batch, or fall silent
CALLS = 8  # at a time in one replica: one computes, others read new words


@dataclass(frozen=True)
class RayOptions:
    """Where the models live: in this process, or as copies on a Ray cluster."""

    # Cluster that holds copies of the models: auto (the one that this machine belongs to), local (one of its own, for
    # as long as the server runs), HOST:PORT or ray://HOST:PORT; without it everything is in one process
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None
    replicas: int = 0  # copies of the models; 0: one for each node that has room for it, or 2 with --ray local
    replica_cpus: float = 1.0  # CPUs that Ray sets aside for each; more than 0
    replica_gpus: float = 0.0  # GPUs that Ray sets aside for each; a part, such as 0.5, shares one
    replica_timeout: float = 30.0  # [s] without an answer, after which another one is asked, until this one is back


WhereModelsLive = Annotated[RayOptions, tyro.conf.arg(name="")]


class Replica:
    """What runs on a worker, in a process of its own: a copy of every model."""

    def __init__(self, threads: int, device: str, bfloat16: bool | None = None) -> None:
        """bfloat16: see `Policy.hasten`."""
        import torch

        torch.set_num_threads(threads)
        keep_memory()
        self._device, self._bfloat16 = device, bfloat16
        self._policies: dict[str, Any] = {}
        self._loading, self._computing = threading.Lock(), threading.Lock()

    def hold(self, models: Sequence[tuple[Shipped, Sequence[str]]]) -> str:
        """These models, each with the words that it shall know, warm, and no others; returns the node's id."""
        for model, words in models:
            self.keep(model, words)
            self._warm_up(self._policy(model))
        kept = {model.sha256 for model, _ in models}
        with self._loading:
            self._policies = {sha256: policy for sha256, policy in self._policies.items() if sha256 in kept}
        return str(load_ray().get_runtime_context().get_node_id())

    def keep(self, model: Shipped, words: Sequence[str]) -> None:
        policy = self._policy(model)
        if words and hasattr(policy, "keep"):
            policy.keep(words)

    def know(self, model: Shipped, words: Sequence[str]) -> None:
        policy = self._policy(model)
        if isinstance(policy, Reader):
            policy.know(words)

    def ask(self, model: Shipped, method: str, *arguments: Any) -> Any:
        policy = self._policy(model)
        with self._computing:
            if many := getattr(policy, method, None):
                return many(*arguments)
            one = getattr(policy, method.removesuffix("_many"))
            return [one(*each) for each in zip(*arguments, strict=True)]

    def _policy(self, model: Shipped) -> Any:
        with self._loading:
            if model.sha256 not in self._policies and not model.files:
                self._policies[model.sha256] = own.construct(model.name)
            if model.sha256 not in self._policies:
                self._policies[model.sha256] = received(model, self._device).hasten(self._bfloat16)
            return self._policies[model.sha256]

    def _warm_up(self, policy: Any) -> None:
        embodiment, texts = embodiment_of(policy), getattr(policy, "texts", None)
        if embodiment is None or texts is None:
            return
        seen = [blank(embodiment)]
        with self._computing:
            for word in list(texts.table)[:1]:
                policy.act(seen, word)
                if hasattr(policy, "value"):
                    policy.value(seen, [word])


class RemoteActor:
    """Acts as the model does, by asking the replicas."""

    def __init__(self, replicas: Replicas, model: Shipped, embodiment: Embodiment | None, history: int | None) -> None:
        self.model, self.words = model, dict[str, None]()  # that are kept
        self.embodiment = embodiment  # None: the model does not say
        self._replicas, self._history = replicas, history  # None: it may look at all of it

    def act(self, history: Sequence[Observation], instruction: str) -> np.ndarray:
        return self.act_many([history], [instruction])[0]

    def act_many(self, histories: Sequence[Sequence[Observation]], instructions: Sequence[str]) -> np.ndarray:
        return self._replicas.ask(self.model, "act_many", self._recent(histories), list(instructions))

    def keep(self, instructions: Sequence[str]) -> None:
        self.words.update(dict.fromkeys(instructions))
        self._replicas.tell("keep", self.model, list(instructions))

    def know(self, instructions: Sequence[str]) -> None:
        if new := [text for text in instructions if text not in self.words]:
            self._replicas.tell("know", self.model, new)

    def _recent(self, histories: Sequence[Sequence[Observation]]) -> list[list[Observation]]:
        """What the model looks at: no more need travel."""
        return [list(history)[-(self._history or 0) :] for history in histories]


class RemoteJudge(RemoteActor):
    """Judges, too."""

    def value(self, history: Sequence[Observation], instructions: Sequence[str]) -> np.ndarray:
        return self.value_many([history], [instructions])[0]

    def value_many(
        self, histories: Sequence[Sequence[Observation]], instructions: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        return self._replicas.ask(self.model, "value_many", self._recent(histories), [list(i) for i in instructions])


@dataclass(eq=False)
class _Place:
    """A replica as seen from here, over all its lives."""

    actor: Any  # Ray's handle
    here: bool = False  # it holds the models, and is asked
    busy: int = 0  # questions that it has now
    node: str = ""  # that it is on
    problem: str = ""  # why it will never be here


@dataclass(eq=False)
class Replicas:
    """The replicas and who of them is asked. Use it as a context manager, or call `close`. Raises Unavailable where the
    cluster cannot be joined or has no room."""

    options: RayOptions
    threads: int  # that the models of one replica may use
    bfloat16: bool | None = None  # do they round to it? None: where that is faster and close enough
    _places: list[_Place] = field(init=False)
    _policies: weakref.WeakSet[RemoteActor] = field(init=False, default_factory=weakref.WeakSet)
    _changed: threading.Condition = field(init=False, default_factory=threading.Condition)
    _closed: threading.Event = field(init=False, default_factory=threading.Event)
    _waiting: list[threading.Thread] = field(init=False, default_factory=list)  # for a replica each

    def __post_init__(self) -> None:
        assert self.options.ray is not None
        cpus_here = math.ceil((self.options.replicas or LOCAL_REPLICAS) * self.options.replica_cpus)
        self._ray = join(self.options.ray, cpus_here)
        cpus, gpus = self.options.replica_cpus, self.options.replica_gpus
        count = self._count()
        actor = self._ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_concurrency=CALLS, scheduling_strategy="SPREAD"
        )(Replica)
        device = "cuda" if gpus else "cpu"
        self._places = [_Place(actor.remote(self.threads, device, self.bfloat16)) for _ in range(count)]
        for place in self._places:
            self._await(place)
        with self._changed:
            self._changed.wait_for(lambda: all(place.here or place.problem for place in self._places), PLACING)
            absent = [place for place in self._places if not place.here]
        if len(absent) == count:
            room = f"the cluster did not place one within {PLACING:.0f} s; has it {cpus:g} CPUs and {gpus:g} GPUs free?"
            raise Unavailable(f"no replica of the models could start: {absent[0].problem or room}")
        if absent:
            log.warning("%d of %d replicas could not start yet; is there room for so many?", len(absent), count)

    def close(self) -> None:
        """Leave the cluster, and no replica behind. Nobody may wait in Ray then: it would crash."""
        self._closed.set()
        for thread in self._waiting:
            thread.join()
        self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def __str__(self) -> str:
        with self._changed:
            here = [place.node for place in self._places if place.here]
        nodes = len(set(here))
        return f"{len(here)} replica{'s' * (len(here) != 1)} on {nodes} node{'s' * (nodes != 1)}"

    def load(self, name_or_path: str | Path) -> RemoteActor:
        """The policy of a checkpoint, once every replica holds it. Raises CheckpointError."""
        from saycan_qt.learning import checkpoint

        policy = checkpoint.load(name_or_path)  # here, too: whatever is wrong with it is said before it travels
        return self._held_as(ship(self._ray, name_or_path), policy, policy.embodiment.history)

    def load_own(self, name: str) -> RemoteActor:
        """The same of a class, `module:Class`. Raises Unreadable."""
        policy = own.construct(name)
        embodiment = embodiment_of(policy)
        return self._held_as(Shipped(name, name, []), policy, embodiment.history if embodiment else None)

    def _held_as(self, model: Shipped, policy: Any, history: int | None) -> RemoteActor:
        """Once every replica holds it. policy: what it is here."""
        kind = RemoteJudge if hasattr(policy, "value") else RemoteActor
        remote = kind(self, model, embodiment_of(policy), history)
        with self._changed:
            self._policies.add(remote)
        self.tell("hold", self._held())
        return remote

    def ask(self, model: Shipped, method: str, *arguments: Any) -> Any:
        """What the least busy replica answers; another one, where that dies or falls silent. The model's own errors
        are raised as they are; Unavailable where no replica is left for too long."""
        for _ in range(TRIES):
            with self._least_busy() as place:
                try:
                    answer = place.actor.ask.remote(model, method, *arguments)
                    return self._ray.get(answer, timeout=self.options.replica_timeout)
                except self._ray.exceptions.RayTaskError as error:
                    raise error.cause from error
                except self._ray.exceptions.RayError as error:
                    self._lost(place, error)
        raise Unavailable(f"{TRIES} replicas of the models failed at one question; their logs are on the cluster")

    def tell(self, method: str, *arguments: Any) -> None:
        """Every replica that is here; the others learn it when they come back."""
        timeout = PLACING if method == "hold" else self.options.replica_timeout
        with self._changed:
            told = [(place, getattr(place.actor, method).remote(*arguments)) for place in self._places if place.here]
        for place, answer in told:
            try:
                self._ray.get(answer, timeout=timeout)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except self._ray.exceptions.RayError as error:
                self._lost(place, error)

    @contextmanager
    def _least_busy(self) -> Iterator[_Place]:
        with self._changed:
            if not self._changed.wait_for(lambda: any(place.here for place in self._places), WAITING):
                raise Unavailable(f"no replica of the models was alive for {WAITING:.0f} s; try again later")
            chosen = min((place for place in self._places if place.here), key=lambda place: place.busy)
            chosen.busy += 1
        try:
            yield chosen
        finally:
            with self._changed:
                chosen.busy -= 1

    def _lost(self, place: _Place, error: Exception) -> None:
        log.debug("a replica failed", exc_info=error)
        with self._changed:
            if not place.here:
                return
            place.here = False
        silent = isinstance(error, self._ray.exceptions.GetTimeoutError)
        log.warning("a replica of the models %s; %s left", "does not answer" if silent else "died", self)
        self._await(place, "a replica of the models is back; %s")

    def _await(self, place: _Place, news: str = "") -> None:
        """Ask this replica, too, as soon as it is started and holds the models."""

        def wait() -> None:
            hold = place.actor.hold.options(max_task_retries=-1)  # it waits for a room, and through further deaths
            answer = hold.remote(self._held())
            while not self._ray.wait([answer], timeout=LOOKING)[0]:
                if self._closed.is_set():
                    return
            try:
                place.node = self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                place.problem = str(error).strip().splitlines()[-1]
            with self._changed:
                place.here = not place.problem
                self._changed.notify_all()
            if place.problem:
                log.error("a replica of the models is gone for good: %s", place.problem)
            elif news:
                log.warning(news, self)

        thread = threading.Thread(target=wait, name="replica", daemon=True)
        self._waiting = [*(other for other in self._waiting if other.is_alive()), thread]
        thread.start()

    def _held(self) -> list[tuple[Shipped, list[str]]]:
        with self._changed:
            return [(policy.model, list(policy.words)) for policy in self._policies]

    def _count(self) -> int:
        """How many there shall be, which the cluster's nodes could hold."""
        options = self.options
        wanted = {"CPU": options.replica_cpus, "GPU": options.replica_gpus}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        room = [min(int(has.get(kind, 0) / n) for kind, n in wanted.items() if n) for has in nodes]
        count = options.replicas or (LOCAL_REPLICAS if options.ray == LOCAL else sum(one > 0 for one in room))
        if not 0 < count <= sum(room):
            each = f"{options.replica_cpus:g} CPUs and {options.replica_gpus:g} GPUs each"
            raise Unavailable(
                f"the Ray cluster has room for {sum(room)} replicas of {each}, not {max(count, 1)}; "
                "see --replicas, --replica-cpus and --replica-gpus, or add nodes"
            )
        return count
