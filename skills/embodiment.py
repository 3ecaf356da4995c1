"""What a robot is to a policy: its cameras, its state, what its actions are made of, and how often it acts.

It is written with a dataset, taken over by training, kept in the checkpoint, told by GetServerInfo, compared with the
robot's own before anything moves, and bounds what the robot is sent. Needs numpy only.

    embodiment = Embodiment.parse(yaml.safe_load(text), "robot.yaml")

    name: tabletop arm
    control_hz: 20                     # actions a second; unset: not known
    max_seconds: 12                    # longest skill
    history: 1                         # observations that a policy sees, the present one included
    cameras: {front: [120, 160], wrist: [120, 160]}              # height, width [pixels]
    state: {joint_1: deg, joint_2: deg, gripper: ""}             # names and units
    action:
      joint_1: {low: -90, high: 90, unit: deg, kind: absolute}
      joint_2: {low: -5, high: 5, unit: deg, kind: delta}
      gripper: {low: 0, high: 1, kind: fraction}
      terminate: {kind: terminate}
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NoReturn, get_args

import numpy as np

from skills.errors import EmbodimentError

Kind = Literal["delta", "absolute", "fraction", "terminate"]
TERMINATE_THRESHOLD = 0.5  # a terminate dimension above it ends the skill
MAX_SECONDS = 30.0  # of a skill, where nobody says
LARGEST = 10_000  # numbers of a state or an action; more are a mistake
MAX_SIDE, MAX_CAMERAS, MAX_PIXELS = 4096, 64, 2**26  # [pixels] of a camera's side, and of all cameras together
MOST_SENT = 16  # cameras in one observation
MAX_NUMBER = 1e19  # of a measurement or an action, nanoseconds since 1970 included; its square is finite in float32
MAX_NAME = 1000  # characters of a robot's, a camera's or a number's name
LEAST_HZ, MOST_HZ = 1e-3, 10_000  # [Hz]
MOST_SECONDS = 1e9  # of a skill; that is for ever
CLOSE = 1e-6  # relative; bounds that differ by less are the same
PROPORTIONS = 0.02  # relative; images whose sides differ by less are only of another size


@dataclass(frozen=True)
class Camera:
    """One camera, as the robot sends its images."""

    name: str
    height: int  # [pixels]
    width: int  # [pixels]


@dataclass(frozen=True)
class StateNumber:
    """One number of proprioception."""

    name: str
    unit: str = ""  # "m", "rad", "deg", ...; "": a fraction, or not known


@dataclass(frozen=True)
class ActionDimension:
    """One number of an action. delta: a change, so that two steps' add up; absolute: where to be, or how fast, at the
    step's end; fraction: 0 to 1, a gripper for instance; terminate: above one half, the skill ends here."""

    name: str
    low: float = 0.0  # smallest action [unit]
    high: float = 1.0  # largest action [unit]
    unit: str = ""
    kind: Kind = "absolute"


@dataclass(frozen=True)
class Embodiment:
    """Cameras or a state, or both; action dimensions, of which at most one terminates."""

    action: tuple[ActionDimension, ...]
    cameras: tuple[Camera, ...] = ()
    state: tuple[StateNumber, ...] = ()
    control_hz: float = 0.0  # actions a second [Hz]; 0: not known
    max_seconds: float = MAX_SECONDS  # longest skill
    history: int = 1  # observations that a policy sees, the present one included
    name: str = ""  # of the robot

    def __post_init__(self) -> None:
        """Raises EmbodimentError for what is no robot."""
        if len(self.name) > MAX_NAME or not self.name.isprintable():
            _refuse("name", f"{self.name[:50]!r} is no name that can be read")
        if not self.action:
            _refuse("action", "it has no action dimension")
        if not self.cameras and not self.state:
            _refuse("cameras", "it has neither a camera nor a state, so that a policy would see nothing")
        for what, parts in (("cameras", self.cameras), ("state", self.state), ("action", self.action)):
            names = [part.name for part in parts]
            if len(names) > (most := MAX_CAMERAS if what == "cameras" else LARGEST):
                _refuse(what, f"{len(names)} of them; at most {most}")
            if twice := next((name for name, times in Counter(names).items() if times > 1), None):
                _refuse(what, f"{twice!r} stands there twice")
            if unnamed := [number for number, name in enumerate(names) if not name or not name.isprintable()]:
                _refuse(what, f"number {unnamed[0] + 1} has no name that can be read")
        for camera in self.cameras:
            if not (1 <= camera.height <= MAX_SIDE and 1 <= camera.width <= MAX_SIDE):
                _refuse(
                    f"cameras: {camera.name}", f"{camera.height} x {camera.width} pixels; each side is 1 to {MAX_SIDE}"
                )
        if (pixels := sum(camera.height * camera.width for camera in self.cameras)) > MAX_PIXELS:
            _refuse("cameras", f"{pixels} pixels together; at most {MAX_PIXELS}")
        ends = [dimension.name for dimension in self.action if dimension.kind == "terminate"]
        if len(ends) > 1:
            _refuse("action", f"{ends[0]!r} and {ends[1]!r} both terminate; one at most")
        for dimension in self.action:
            if dimension.kind not in get_args(Kind):
                _refuse(f"action: {dimension.name}", f"kind {dimension.kind!r}; there are {', '.join(get_args(Kind))}")
            if not (math.isfinite(dimension.low) and math.isfinite(dimension.high) and dimension.low < dimension.high):
                _refuse(f"action: {dimension.name}", f"low {dimension.low:g} must be below high {dimension.high:g}")
            if max(abs(dimension.low), abs(dimension.high)) > MAX_NUMBER:
                _refuse(f"action: {dimension.name}", f"{dimension.low:g} to {dimension.high:g} is no robot's range")
            if dimension.kind in ("fraction", "terminate") and (dimension.low < 0 or dimension.high > 1):
                _refuse(f"action: {dimension.name}", f"a {dimension.kind} lies within 0 to 1")
        if self.control_hz and not LEAST_HZ <= self.control_hz <= MOST_HZ:  # a NaN is not, either
            _refuse("control_hz", f"{self.control_hz:g}; give actions a second, or leave it out")
        if not 0 < self.max_seconds <= MOST_SECONDS:  # a NaN is not, either
            _refuse("max_seconds", f"{self.max_seconds:g}; give seconds above 0, at most {MOST_SECONDS:g}")
        if not 1 <= self.history <= 64:
            _refuse("history", f"{self.history}; a policy sees 1 to 64 observations")

    # -- actions ------------------------------------------------------------------------------------------------------

    @property
    def low(self) -> np.ndarray:
        """(D,) float32."""
        return np.array([dimension.low for dimension in self.action], np.float32)

    @property
    def high(self) -> np.ndarray:
        """(D,) float32."""
        return np.array([dimension.high for dimension in self.action], np.float32)

    @property
    def terminate(self) -> int | None:
        """Which dimension ends a skill; None: it ends by success, or by time."""
        return next((i for i, dimension in enumerate(self.action) if dimension.kind == "terminate"), None)

    @property
    def max_steps(self) -> int:
        """Control periods of the longest skill; seconds where the rate is not known."""
        return max(1, round(self.max_seconds * (self.control_hz or 1.0)))

    @property
    def period(self) -> float | None:
        """[s] for which an action holds; None: not known."""
        return 1 / self.control_hz if self.control_hz else None

    def clipped(self, action: np.ndarray) -> np.ndarray:
        """(D,) float32 within the bounds. Raises ValueError for other shapes and for what is not finite."""
        action = np.asarray(action, np.float32)
        if action.shape != (len(self.action),):
            names = ", ".join(dimension.name for dimension in self.action)
            raise ValueError(f"an action has {len(self.action)} numbers ({names}), this one has shape {action.shape}")
        if not np.isfinite(action).all():
            wrong = int(np.flatnonzero(~np.isfinite(action))[0])
            raise ValueError(f"the action's {self.action[wrong].name} is {action[wrong]}")
        return np.clip(action, self.low, self.high)

    def ends(self, action: np.ndarray) -> bool:
        """Does this action end the skill?"""
        return self.terminate is not None and bool(action[self.terminate] > TERMINATE_THRESHOLD)

    # -- the same robot? ----------------------------------------------------------------------------------------------

    def without_terminate(self) -> Embodiment:
        """As a driver is that is not told of ends: policies learn them beside what the robot is sent."""
        if self.terminate is None:
            return self
        return replace(self, action=tuple(d for d in self.action if d.kind != "terminate"))

    def misfit(self, robot: Embodiment) -> str:
        """The first difference that keeps a policy of this embodiment from a robot, in one line; "" where it fits.

        What the robot has beyond it (further cameras, wider bounds, a state that the policy does not look at) does no
        harm; images of the same proportions are brought to the policy's size; a policy's terminate dimension may be its
        own. Rates must agree where both are known."""
        mine = self if robot.terminate is not None else self.without_terminate()
        if problem := _unlike("action dimension", [d.name for d in mine.action], [d.name for d in robot.action]):
            return problem
        for wants, has in zip(mine.action, robot.action, strict=True):
            if wants.unit != has.unit and wants.unit and has.unit:
                return f"{wants.name} is in {wants.unit} for the policy, in {has.unit} for the robot"
            if wants.kind != has.kind:
                return f"{wants.name} is {_a(wants.kind)} for the policy, {_a(has.kind)} for the robot"
        state = robot.state if self.state else ()
        if problem := _unlike("state number", [s.name for s in self.state], [s.name for s in state]):
            return problem
        for number, there in zip(self.state, state, strict=True):
            if number.unit != there.unit and number.unit and there.unit:
                return f"{number.name} is in {number.unit} for the policy, in {there.unit} for the robot"
        cameras = [camera.name for camera in robot.cameras]
        if missing := [camera.name for camera in self.cameras if camera.name not in cameras]:
            return f"the policy sees through a camera {missing[0]!r}, the robot has {', '.join(cameras) or 'none'}"
        sent = {camera.name: camera for camera in robot.cameras}
        for sees, sends in ((camera, sent[camera.name]) for camera in self.cameras):
            if not math.isclose(sees.height * sends.width, sends.height * sees.width, rel_tol=PROPORTIONS):
                sizes = f"{sees.height} x {sees.width} for the policy, {sends.height} x {sends.width} for the robot"
                return f"the images of camera {sees.name!r} are {sizes}: other proportions"
        if self.control_hz and robot.control_hz and not math.isclose(self.control_hz, robot.control_hz, rel_tol=1e-3):
            return f"the policy acts {self.control_hz:g} times a second, the robot {robot.control_hz:g} times"
        return ""

    def beyond(self, robot: Embodiment) -> str:
        """The first of a policy's dimensions whose range is over twice the robot's, so that most of it is cut to the
        robot's bounds: another unit, perhaps, that nobody says. "" where there is none. Of embodiments that fit."""
        mine = self if robot.terminate is not None else self.without_terminate()
        for wants, has in zip(mine.action, robot.action, strict=True):
            if wants.high - wants.low > 2 * (has.high - has.low):
                return (
                    f"{wants.name} is {wants.low:g} to {wants.high:g} {wants.unit or '(of no unit)'} for the policy, "
                    f"{has.low:g} to {has.high:g} {has.unit or '(of no unit)'} for the robot"
                )
        return ""

    # -- written and read ---------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; `parse` reads it."""
        return {
            "name": self.name,
            "control_hz": self.control_hz,
            "max_seconds": self.max_seconds,
            "history": self.history,
            "cameras": [asdict(camera) for camera in self.cameras],
            "state": [asdict(number) for number in self.state],
            "action": [asdict(dimension) for dimension in self.action],
        }

    @classmethod
    def parse(cls, given: Any, source: str) -> Embodiment:
        """Of JSON or YAML, lists of parts or parts by name. Raises EmbodimentError, which names `source`."""
        try:
            found = _mapping(given, "the embodiment", KEYS)
            return cls(
                action=tuple(ActionDimension(**part) for part in _parts(found, "action", DIMENSION)),
                cameras=tuple(Camera(**part) for part in _parts(found, "cameras", CAMERA)),
                state=tuple(StateNumber(**part) for part in _parts(found, "state", STATE)),
                control_hz=_number(found.get("control_hz") or 0.0, "control_hz"),
                max_seconds=_number(found.get("max_seconds", MAX_SECONDS), "max_seconds"),
                history=_whole(found.get("history", 1), "history"),
                name=_text(found.get("name") or "", "name"),
            )
        except EmbodimentError as error:
            raise EmbodimentError(f"{source}: {error}") from None


EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+")  # 1e-2, which is a text in YAML 1.1
KEYS = ("name", "control_hz", "max_seconds", "history", "cameras", "state", "action")


def _refuse(where: str, problem: str) -> NoReturn:
    raise EmbodimentError(f"{where}: {problem}")


def _a(kind: str) -> str:
    return {"absolute": "an absolute", "delta": "a delta", "fraction": "a fraction", "terminate": "an end"}[kind]


def _unlike(what: str, policy: Sequence[str], robot: Sequence[str]) -> str:
    for number, (wants, has) in enumerate(zip(policy, robot, strict=False), 1):
        if wants != has:
            return f"{what} {number} is {wants!r} for the policy, {has!r} for the robot"
    if len(policy) != len(robot):
        return f"the policy has {len(policy)} {what}s, the robot {len(robot)}"
    return ""


def _mapping(given: Any, what: str, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        _refuse(what, f"it must be `key: value` lines, not {given!r}"[:200])
    if unknown := [key for key in given if key not in keys]:
        _refuse(what, f"no key {str(unknown[0])[:50]!r}; it may have: {', '.join(keys)}")
    return dict(given)


def _number(given: Any, what: str) -> float:
    if isinstance(given, str) and EXPONENT.fullmatch(given):
        given = float(given)
    if isinstance(given, bool) or not isinstance(given, int | float):
        _refuse(what, f"{str(given)[:50]!r} is no number")
    if isinstance(given, int) and abs(given) > MAX_NUMBER:  # of which Python makes no float from 10**309 on
        _refuse(what, "it has too many digits")
    return float(given)


def _whole(given: Any, what: str) -> int:
    if isinstance(given, bool) or not isinstance(given, int):
        _refuse(what, f"{str(given)[:50]!r} is no whole number")
    if abs(given) > MAX_NUMBER:
        _refuse(what, "it has too many digits")
    return given


def _text(given: Any, what: str) -> str:
    if not isinstance(given, str):
        _refuse(what, f"{str(given)[:50]!r} is no text")
    return given


CAMERA = {"height": _whole, "width": _whole}
STATE = {"unit": _text}
DIMENSION = {"low": _number, "high": _number, "unit": _text, "kind": _text}


def _parts(found: Mapping[str, Any], what: str, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Keyword arguments of each part, from a list of objects with a name or from a mapping of names."""
    given = found.get(what) or []
    if isinstance(given, Mapping):
        given = [{"name": name, **_short(part, what, name)} for name, part in given.items()]
    if not isinstance(given, list):
        _refuse(what, "it must be names with what they are")
    parts = []
    for entry in given:
        part = _mapping(entry, what, ("name", *fields))
        name = _text(part.pop("name", ""), f"{what}: name")
        if len(name) > MAX_NAME:
            _refuse(what, f"a name of {len(name)} characters; at most {MAX_NAME}")
        parts.append(
            {"name": name, **{key: fields[key](value, f"{what}: {name}: {key}") for key, value in part.items()}}
        )
        if what == "cameras" and not {"height", "width"} <= part.keys():
            _refuse(f"cameras: {name}", f"give its size, such as `{name}: [120, 160]` (height, width)")
        unbounded = what == "action" and part.get("kind") not in ("fraction", "terminate")
        if unbounded and (missing := [bound for bound in ("low", "high") if bound not in part]):
            _refuse(f"action: {name}", f"it has no `{missing[0]}`; give both bounds [{part.get('unit') or 'its unit'}]")
    return parts


def _short(part: Any, what: str, name: Any) -> dict[str, Any]:
    """What stands behind a name: its fields, or a short form of them."""
    match what, part:
        case _, Mapping():
            return dict(part)
        case "cameras", [height, width]:
            return {"height": height, "width": width}
        case "state", str():
            return {"unit": part}
        case "state", None:
            return {}
        case "action", [low, high]:
            return {"low": low, "high": high}
    _refuse(f"{what}: {str(name)[:50]}", f"{str(part)[:50]!r} does not say what it is")
