"""What crosses every seam: Observation, Action, Outcome, and the protocols that judge, act and move.

Needs numpy only, so that a robot stack can import it on a small computer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np

from skills.embodiment import Embodiment
from skills.errors import InvalidRequest
from skills.library import Skill


@dataclass(frozen=True)
class Observation:
    """What the robot perceives at one instant.

    images may be given as one array where there is one camera; its name is then "" and it stands for any."""

    images: Mapping[str, np.ndarray]  # camera -> (H, W, 3) uint8 RGB; empty where the robot has none
    state: np.ndarray  # (S,) float32, the numbers of the robot's embodiment
    place: str = ""  # where the base stands, a library place; "" when unknown
    held: str = ""  # the object the robot believes it holds; "" for none
    objects: Mapping[str, str] = field(default_factory=dict)  # semantic map: object -> place where it was last seen
    # thing -> state that it was last seen in, where that is out of the usual: {"top drawer": "open"}
    states: Mapping[str, str] = field(default_factory=dict)
    # (D,) that was carried out just before; None: none was, or it is not known. For models that look at what they did
    action: np.ndarray | None = None

    def __post_init__(self) -> None:
        if isinstance(self.images, np.ndarray):
            object.__setattr__(self, "images", {"": self.images})

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 of the first camera; ValueError where there is none."""
        if not self.images:
            raise ValueError("this robot has no camera")
        return next(iter(self.images.values()))


class Status(Enum):
    """How a skill ended; the names follow ROS GoalStatus."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"  # ran to its end, goal not reached
    CANCELED = "canceled"
    ABORTED = "aborted"  # could not be run to its end


@dataclass(frozen=True)
class Outcome:
    """The result of one executed skill."""

    status: Status
    message: str = ""  # one sentence for people
    steps: int = 0  # control periods used
    seconds: float = 0.0  # wall clock

    @property
    def succeeded(self) -> bool:
        return self.status is Status.SUCCEEDED


class Critic(Protocol):
    """Judges: how likely is each instruction to succeed from here?"""

    def value(self, history: Sequence[Observation], instructions: Sequence[str]) -> np.ndarray:
        """Affordances, (N,) float32 in [0, 1], one for each instruction; history is oldest first.
        Raises ValueError, saying why in one line, where it cannot judge from this history."""
        ...


class Actor(Protocol):
    """Acts: the next action towards an instruction."""

    def act(self, history: Sequence[Observation], instruction: str) -> np.ndarray:
        """One action, (D,) float32 within the bounds of its embodiment; history is oldest first.
        Raises ValueError, saying why in one line, where it cannot act from this history."""
        ...


@runtime_checkable
class BatchedCritic(Critic, Protocol):
    """A critic that judges several states at once; a server then asks it so. A plain one is asked one by one."""

    def value_many(
        self, histories: Sequence[Sequence[Observation]], instructions: Sequence[Sequence[str]]
    ) -> Sequence[np.ndarray]:
        """What `value` gives for each history, of any length, with its own instructions: N arrays. A ValueError means
        that one of them is refused; each is then judged alone."""
        ...


@runtime_checkable
class BatchedActor(Actor, Protocol):
    """An actor for several robots at once; a server then asks it so. A plain one is asked one by one."""

    def act_many(self, histories: Sequence[Sequence[Observation]], instructions: Sequence[str]) -> np.ndarray:
        """What `act` gives for each history, of any length, and instruction: (N, D) float32. A ValueError means that
        one of them is refused; each then acts alone."""
        ...


@runtime_checkable
class ChunkedActor(Actor, Protocol):
    """An actor that gives several actions at once, for the periods to come: while a robot carries them out, the next
    chunk is computed. `act` gives a chunk's first. Its embodiment says how long a period is."""

    @property
    def chunk(self) -> int:
        """How many actions, N, of 1 to 1,024."""
        ...

    def act_chunk(self, history: Sequence[Observation], instruction: str, committed: np.ndarray) -> np.ndarray:
        """(N, D) float32: row i is for the time from i to i + 1 periods after the history's last observation.
        committed: (K, D) float32, K from 0: what the robot does in the first K periods whatever is answered, as the
        answer will not be there before; a policy that can continues from them (real-time chunking), others ignore it.
        Raises ValueError as `act` does."""
        ...


@runtime_checkable
class BatchedChunkedActor(ChunkedActor, Protocol):
    """A chunked actor for several robots at once; a server then asks it so. A plain one is asked one by one."""

    def act_chunks(
        self,
        histories: Sequence[Sequence[Observation]],
        instructions: Sequence[str],
        committed: Sequence[np.ndarray],
    ) -> Sequence[np.ndarray]:
        """What `act_chunk` gives for each history, of any length, instruction and committed rows: as many (N, D)
        float32. A ValueError means that one of them is refused; each then acts alone."""
        ...


@runtime_checkable
class Reader(Protocol):
    """An actor to whom new words are slow: a server has them read before the robot stands in line for the model."""

    def know(self, instructions: Sequence[str]) -> None:
        """Acting towards these is as fast as towards others from now on. Called from any thread, while others act."""
        ...


@runtime_checkable
class Mapper(Protocol):
    """A critic that can show where it sees value, for people."""

    def value_maps(self, history: Sequence[Observation], instruction: str) -> Mapping[str, np.ndarray]:
        """(H, W, 3) uint8 RGB pictures, by what each shows; history is oldest first. Raises ValueError as `value`."""
        ...


@runtime_checkable
class Imaginer(Protocol):
    """A driver that can show where a skill would be worth what, were its thing there [Figure 8]."""

    def imagine(self, skill: Skill) -> Callable[[Callable[[Observation], float]], np.ndarray] | None:
        """Returns at once: None where there is nothing to imagine, else a function that another thread calls, while the
        robot may already move. It asks for the value, in [0, 1], of each observation that the robot would make, and
        gives an (H, W, 3) uint8 RGB picture for people."""
        ...


@runtime_checkable
class Embodied(Protocol):
    """A robot, or a model, that says for which body it is. Where neither does, a robot is sent what the model gives."""

    @property
    def embodiment(self) -> Embodiment: ...


def embodiment_of(thing: object) -> Embodiment | None:
    """What a robot or a model says of its body; None where it says nothing."""
    found = getattr(thing, "embodiment", None)
    return found if isinstance(found, Embodiment) else None


def gives_chunks(actor: object) -> TypeGuard[ChunkedActor]:
    """Does it give two actions or more at once? One that gives chunks of one is asked as a plain actor is."""
    return isinstance(actor, ChunkedActor) and actor.chunk > 1


def looked_at(sent: Sequence[str], cameras: Sequence[str]) -> dict[str, str]:
    """Each camera that a model looks at, in its order, and the name under which its image was sent: its own, or ""
    where there is one camera and one image. Raises InvalidRequest, which names the first that was not sent."""
    if len(cameras) == 1 and list(sent) == [""]:
        return {cameras[0]: ""}
    if missing := [name for name in cameras if name not in sent]:
        there = ", ".join(map(repr, sent)) or "none"
        raise InvalidRequest(f"no image of camera {missing[0]!r}, which this model looks at; sent: {there}", "images")
    return {name: name for name in cameras}


def blank(embodiment: Embodiment) -> Observation:
    """What such a robot would see in the dark, with all its numbers 0."""
    images = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in embodiment.cameras}
    return Observation(images, np.zeros(len(embodiment.state), np.float32))


@runtime_checkable
class Robot(Protocol):
    """A robot's driver; knows nothing of gRPC. All calls come from one thread at a time, `stop` from any. It should be
    `Embodied`, too: then no policy for another body moves it."""

    def observe(self) -> Observation: ...

    def apply(self, action: np.ndarray) -> None:
        """Carry out one (D,) float32 action for one control period; returns when the period has passed."""

    def stop(self) -> None:
        """Zero velocity now, gripper holds; what moves, ends. Safe to call at any time, from any thread, any number of
        times. No latch: the next `apply` moves again. Whether there is one, the service decides."""

    def start(self, skill: Skill) -> None:
        """Called once before a skill runs (remember what `succeeded` needs)."""

    def perform(self, skill: Skill, canceled: Callable[[], bool]) -> None:
        """Run a scripted (not learnt) skill to its end, or raise ValueError saying why it cannot be run. To be asked
        often: `canceled` calls `observe` and `view` now and then, for those who watch."""

    def succeeded(self, skill: Skill) -> bool | None:
        """Did the skill that just ended reach its goal? None when the robot cannot tell. Of a learnt skill that did, it
        is asked again after `finish`: what did not last is no success."""

    def finish(self, skill: Skill, canceled: Callable[[], bool]) -> None:
        """Called once after a learnt skill was judged, unless it was canceled: back to where the next one is decided
        from. The planner's affordances were learnt from there."""

    def satisfied(self, instruction: str) -> bool | None:
        """Does the world now meet the instruction's goal? None when the robot knows no goal for it."""

    def view(self, name: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB for people, from camera `name`; KeyError for an unknown one."""
