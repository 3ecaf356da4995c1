"""Where a dataset has what an episode needs: what it says of itself, and what a mapping says instead.

The dataset's names and rate, and the embodiment beside it where we wrote one, become the robot's embodiment. What a
mapping names and the dataset lacks is refused with what there is and the line to write.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from saycan_qt.data.layout.columns import Columns, check_key, nearest
from saycan_qt.data.layout.mapping import ALL, BUILT_IN, LAST, NONE, ColumnMapping
from saycan_qt.data.layout.outcomes import Outcomes
from saycan_qt.data.lerobot import DatasetError
from skills.embodiment import MAX_SECONDS, ActionDimension, Camera, Embodiment, StateNumber
from skills.errors import EmbodimentError

TERMINATE = "terminate"
MOST_SAID = 100  # names of columns that are told
CLOSE = 0.01  # relative, between a rate asked for and the dataset's divided by a whole number
CAMERA = re.compile(r"(observation\.images\.|observation\.|steps/observation/|steps/)?(?P<name>.+)")
DELTA = re.compile(r"(^|.*[._ /])(delta|rel|relative)([._ /].*|$)|d_?(x|y|z|rx|ry|rz|roll|pitch|yaw)")
ABSOLUTE = re.compile(
    r"(^|.*[._ /\d])(pos|position|qpos|vel|velocity|angle|joints?|motors?|gripper|waist|shoulder|elbow|forearm|wrist|"
    r"finger|thumb|hip|knee|ankle)([._ /\d].*|$)"
)


@dataclass(frozen=True)
class Contents:
    """What a dataset says that it has, and which columns are what where nobody says otherwise."""

    where: str  # for people
    images: Mapping[str, tuple[int, int]]  # column -> (H, W) [px]
    widths: Mapping[str, int]  # column -> numbers a frame
    once: Collection[str]  # columns of one number an episode, not a frame
    texts: Collection[str]
    cameras: Sequence[str]  # columns that are cameras
    state: str
    action: str
    success: tuple[str, ...]
    reward: str
    instruction: str
    names: Mapping[str, Sequence[str]] = field(
        default_factory=dict
    )  # column -> its numbers' names, where they have any
    hz: float = 0.0  # 0: it does not say
    robot: str = ""  # its name
    own: Embodiment | None = None  # of `state` and `action`, as we wrote it beside the dataset
    blank: Collection[str] = ()  # columns of images that show nothing

    def refuse(self, problem: str, line: str) -> NoReturn:
        """Raises DatasetError, with what there is and the line to write."""
        once = dict.fromkeys(self.once, 1)
        listed = sorted((once | dict(self.widths)).items())[:MOST_SAID]
        numbers = ", ".join(f"{name} ({width})" for name, width in listed)
        images = ", ".join(list(self.images)[:MOST_SAID])
        texts = ", ".join(sorted(self.texts)[:MOST_SAID])
        raise DatasetError(
            f"{self.where}: {problem}\n  images: {images or 'none'}\n  numbers: {numbers or 'none'}\n"
            f"  texts: {texts or 'none'}\nA mapping needs a line such as\n  {line}\n"
            f"(mapping=..., a YAML file or one of {', '.join(BUILT_IN)})"
        )


@dataclass(frozen=True)
class Layout:
    """Where everything is, settled."""

    embodiment: Embodiment  # of what comes out; the bounds of a dimension that is not `bounded` mean nothing
    bounded: tuple[bool, ...]  # of each action dimension: does the dataset say its bounds?
    cameras: Mapping[str, str]  # camera -> column
    size: tuple[int, int]  # (H, W) [px] of all cameras' images; (0, 0) where there is none
    resized: bool  # may images be stored in any size?
    state: tuple[Columns, ...]
    action: tuple[Columns, ...]
    kept: tuple[int, ...]  # which of the numbers of `action`
    terminate: Columns | str | None  # a column, "last", "none"; None: a number of `action`
    success: tuple[str, ...] | Outcomes
    reward: str
    instruction: str
    skip_first: int
    every: int  # frames that become one step
    trusted: bool  # are fractions within 0 to 1 because we wrote them?
    guessed: tuple[str, ...]  # action dimensions whose kind nobody says
    unlabelled: bool  # does nobody say what succeeded?

    @property
    def columns(self) -> list[str]:
        """Columns of numbers that every frame must have."""
        terminate = [self.terminate] if isinstance(self.terminate, Columns) else []
        return list(dict.fromkeys(entry.column for entry in [*self.state, *self.action, *terminate]))

    @property
    def labels(self) -> tuple[str, ...]:
        """Columns that may say whether an episode succeeded."""
        return () if isinstance(self.success, Outcomes) or self.success == (ALL,) else self.success


def settle(mapping: ColumnMapping, there: Contents, rate: float | None = None) -> Layout:
    """rate: [Hz] to bring the episodes to; None: theirs. Raises DatasetError."""
    cameras = _cameras(mapping, there)
    size = mapping.image_size or next((there.images[column] for column in cameras.values()), (0, 0))
    state = (Columns(there.state),) if mapping.state is None and there.state in there.widths else mapping.state or ()
    action = mapping.action or (Columns(there.action),)
    terminate = (mapping.terminate,) if isinstance(mapping.terminate, Columns) else ()
    for key, entries in (("state", state), ("action", action), ("terminate", terminate)):
        for entry in entries:
            _check(key, entry, there)
    dimensions, bounded, guessed = _dimensions(mapping, there, action)
    ends, kept = _ends(mapping, there, dimensions, action)
    if isinstance(ends, Columns) and (width := ends.width(there.widths[ends.column])) != 1:
        there.refuse(f"`terminate` takes one number, not {width}", f'terminate: "{ends.column}[0]"')
    dimensions = [dimensions[number] for number in kept]
    bounded = [bounded[number] for number in kept]
    if ends not in (NONE, None):
        dimensions.append(ActionDimension(TERMINATE, kind="terminate"))
        bounded.append(True)
    hz = mapping.rate or there.hz
    guessed = [name for name in guessed if any(dimension.name == name for dimension in dimensions)]
    every = _every(there, hz, rate, guessed)
    for number, dimension in enumerate(dimensions):
        if bounded[number] and dimension.kind == "delta" and every > 1:  # as many changes add up
            dimensions[number] = replace(dimension, low=dimension.low * every, high=dimension.high * every)
    own = there.own
    if not cameras and not state:
        line = f"state: {nearest('state', there.widths, 'observation.state')}"
        there.refuse("neither a camera nor a state, so that a policy would see nothing", line)
    try:
        embodiment = Embodiment(
            action=tuple(dimensions),
            cameras=tuple(Camera(name, *there.images[column]) for name, column in cameras.items()),
            state=_state(there, state),
            control_hz=rate or hz,
            max_seconds=own.max_seconds if own else MAX_SECONDS,
            history=own.history if own else 1,
            name=own.name if own else there.robot,
        )
    except EmbodimentError as error:
        raise DatasetError(f"{there.where}: {error}") from None
    success, unlabelled = _success(mapping, there)
    return Layout(
        embodiment=embodiment,
        bounded=tuple(bounded),
        cameras=cameras,
        size=size,
        resized=mapping.image_size is not None,
        state=state,
        action=action,
        kept=tuple(kept),
        terminate=ends,
        success=success,
        reward=_reward(mapping, there),
        instruction=_instruction(mapping, there),
        skip_first=mapping.skip_first,
        every=every,
        trusted=own is not None and mapping.action is None,
        guessed=tuple(guessed),
        unlabelled=unlabelled,
    )


def camera_name(column: str) -> str:
    """observation.images.front -> front."""
    found = CAMERA.fullmatch(column)
    return found["name"] if found else column


def kind_of(name: str) -> str | None:
    """The kind of action number that a name tells of; None where it tells nothing."""
    name = name.lower()
    if name == TERMINATE:
        return "terminate"
    if DELTA.fullmatch(name):
        return "delta"
    return "absolute" if ABSOLUTE.fullmatch(name) else None


def possible_rates(*hz: float) -> str:
    """Of frames at all of these rates [Hz]."""
    rates = [min(hz) / every for every in range(1, 31)]
    common = [rate for rate in rates if all(abs(one / round(one / rate) - rate) <= CLOSE * rate for one in hz)]
    return ", ".join(f"{rate:g}" for rate in common[:8]) or "none"


def _cameras(mapping: ColumnMapping, there: Contents) -> dict[str, str]:
    """Camera -> column."""
    by_name = {camera_name(column): column for column in there.images}
    cameras: dict[str, str] = {}
    wanted = [("", column) for column in there.cameras] if mapping.cameras is None else mapping.cameras
    for name, given in wanted:
        column = given if given in there.images else by_name.get(given, "")
        if not column:
            shown = [name for name in there.images if name not in there.blank] or list(there.images)
            line = f"image: {nearest(given, shown, '')}" if shown else "cameras: []   # none: the policy sees the state"
            there.refuse(f"it has no image {given!r}", line)
        name = name or camera_name(column)
        if name in cameras:
            name = column
        if name in cameras:
            raise DatasetError(f"{there.where}: camera {name!r} stands twice in the mapping")
        cameras[name] = column
    return cameras


def _check(key: str, entry: Columns, there: Contents) -> None:
    """Raises DatasetError unless the numbers are there."""
    if entry.column in there.once:
        raise DatasetError(f"{there.where}: {entry.column} is a number an episode; state and action have one a step")
    if entry.column not in there.widths:
        close = difflib.get_close_matches(entry.column, there.widths, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        acting = [name for name in there.widths if "action" in name and TERMINATE not in name]
        lines = {"state": "state: null", "terminate": f"terminate: {LAST}"}
        lines["action"] = f"action: [{', '.join(acting or [nearest('action', there.widths, 'action')])}]"
        there.refuse(f"no column {entry.column!r}, wanted for `{key}`{hint}", lines[key])
    has = there.widths[entry.column]
    if entry.width(has) <= 0 or (entry.stop or 0) > has:
        start = entry.start if entry.start < has else 0
        works = replace(entry, start=0, stop=None).part(start, has)
        problem = f"{entry.column} has {has} numbers, `{key}` wants {entry.start}:{entry.stop or has}"
        there.refuse(problem, f"{key}: [{works}]" if key != TERMINATE else f'{key}: "{entry.column}[{has - 1}]"')


def _dimensions(
    mapping: ColumnMapping, there: Contents, action: Sequence[Columns]
) -> tuple[list[ActionDimension], list[bool], list[str]]:
    """All numbers of `action`: what each is, whether the dataset says its bounds, and those whose kind is a guess."""
    dimensions: list[ActionDimension] = []
    bounded: list[bool] = []
    for entry in action:
        names = _names(there, entry)
        if there.own is not None and entry.column == there.action:
            own = there.own.action[entry.start : entry.stop]
            dimensions += [replace(d, low=0, high=1, unit="") if entry.changed else d for d in own]
            bounded += [not entry.changed] * len(own)
            continue
        gripper = "fraction" if entry.invert or entry.relative else None
        kinds = [gripper or kind_of(name) for name in names]
        dimensions += [ActionDimension(name, kind=kind or "") for name, kind in zip(names, kinds, strict=True)]  # type: ignore[arg-type]
        bounded += [kind in ("fraction", "terminate") for kind in kinds]
    if mapping.names is not None and len(mapping.names) != len(dimensions):
        raise DatasetError(
            f"{there.where}: the action has {len(dimensions)} numbers, the mapping {len(mapping.names)} `names`: "
            f"{', '.join(mapping.names)}"
        )
    names = mapping.names or _unlike([dimension.name for dimension in dimensions], "action")
    for key in mapping.kinds:
        if key:
            check_key(key, names, f"{there.where}: kinds")
    guessed: list[str] = []
    for number, (dimension, name) in enumerate(zip(dimensions, names, strict=True)):
        renamed = kind_of(name) if mapping.names else None
        known = dimension.kind if dimension.kind in ("fraction", "terminate") else ""
        kind = mapping.kinds.get(name) or known or mapping.kinds.get("") or dimension.kind or renamed
        if renamed == "terminate":
            kind = renamed
        if not kind:
            kind = "absolute"
            guessed.append(name)
        if kind != dimension.kind:
            bounded[number] = kind in ("fraction", "terminate")
            dimension = replace(dimension, low=0.0, high=1.0)
        dimensions[number] = replace(dimension, name=name, kind=kind)  # type: ignore[arg-type]
    return dimensions, bounded, guessed


def _ends(
    mapping: ColumnMapping, there: Contents, dimensions: Sequence[ActionDimension], action: Sequence[Columns]
) -> tuple[Columns | str | None, list[int]]:
    """What terminates, and which of the numbers of `action` are kept."""
    numbers = list(range(len(dimensions)))
    here = [number for number in numbers if dimensions[number].kind == "terminate"]
    if mapping.terminate is None:
        return (None if here else LAST), numbers
    if mapping.terminate == NONE or not here:
        return mapping.terminate, [number for number in numbers if number not in here]
    name, parts = dimensions[here[0]].name, _parts(there, action, [n for n in numbers if n not in here])
    raise DatasetError(
        f"{there.where}: the action has {name!r} already, and the mapping a `terminate:`; leave that line out, or the "
        f"number, with `action: [{', '.join(parts)}]`"
    )


def _parts(there: Contents, action: Sequence[Columns], kept: Collection[int]) -> list[str]:
    """`action` with the numbers in `kept` alone, as a mapping has them."""
    parts, number = [], 0
    for entry in action:
        start = None
        width = entry.width(there.widths[entry.column])
        for place in range(width + 1):
            wanted = place < width and number + place in kept
            if wanted and start is None:
                start = place
            if not wanted and start is not None:
                parts.append(entry.part(start, place))
                start = None
        number += width
    return parts


def without(layout: Layout, there: Contents, names: Collection[str]) -> str:
    """The line of a mapping that leaves out action dimensions."""
    dimensions = [dimension.name for dimension in layout.embodiment.action]
    kept = [place for place, name in zip(layout.kept, dimensions, strict=False) if name not in names]
    return f"action: [{', '.join(_parts(there, layout.action, kept))}]"


def _state(there: Contents, state: Sequence[Columns]) -> tuple[StateNumber, ...]:
    numbers: list[StateNumber] = []
    for entry in state:
        if there.own is not None and entry.column == there.state and not entry.changed:
            numbers += there.own.state[entry.start : entry.stop]
        else:
            numbers += [StateNumber(name) for name in _names(there, entry)]
    names = _unlike([number.name for number in numbers], "state")
    return tuple(replace(number, name=name) for number, name in zip(numbers, names, strict=True))


def _names(there: Contents, entry: Columns) -> Sequence[str]:
    width = there.widths[entry.column]
    named = there.names.get(entry.column, ())
    if len(named) != width or len(set(named)) < width or not all(name and name.isprintable() for name in named):
        stem = re.split(r"[./]", entry.column)[-1]
        named = [stem] if width == 1 else [f"{stem}_{number}" for number in range(width)]
    return named[entry.start : entry.stop]


def _unlike(names: Sequence[str], stem: str) -> Sequence[str]:
    """The names, or numbers of their own where two are alike."""
    return names if len(set(names)) == len(names) else [f"{stem}_{number}" for number in range(len(names))]


def _every(there: Contents, hz: float, rate: float | None, guessed: Sequence[str]) -> int:
    """Frames that become one step."""
    if rate is None:
        return 1
    if not hz:
        raise DatasetError(
            f"{there.where} does not say its rate; a mapping's line `rate: HZ` does, then {rate:g} can be"
        )
    every = max(1, round(hz / rate))
    if abs(hz / every - rate) > CLOSE * rate:
        raise DatasetError(
            f"{there.where} has {hz:g} frames a second, of which none are {rate:g}; whole numbers of frames are "
            f"{possible_rates(hz)}, ..."
        )
    if every > 1 and guessed:
        there.refuse(
            f"from {hz:g} to {rate:g} Hz changes are added up, and where to be is taken at the step's end; nobody says "
            f"which {', '.join(guessed)} {'are' if guessed[1:] else 'is'}",
            f"kinds: {{{', '.join(f'{name}: delta' for name in guessed)}}}   # or absolute",
        )
    return every


def _success(mapping: ColumnMapping, there: Contents) -> tuple[tuple[str, ...] | Outcomes, bool]:
    """What says it, and whether nothing does."""
    known = [*there.widths, *there.once]
    if mapping.success is None:
        labels = tuple(name for name in there.success if name in known)
        return labels or (ALL,), not labels
    if isinstance(mapping.success, Outcomes) or mapping.success == (ALL,):
        return mapping.success, False
    if not any(name in known for name in mapping.success):
        line = f"success: {ALL}   # if every episode shows a success"
        there.refuse(f"none of the success labels {', '.join(mapping.success)}", line)
    return mapping.success, False


def _reward(mapping: ColumnMapping, there: Contents) -> str:
    """What usually holds it may be missing, what the mapping names may not."""
    name = mapping.reward or there.reward
    if name != there.reward and there.widths.get(name) != 1:
        single = [column for column, width in there.widths.items() if width == 1]
        line = f"reward: {nearest(name, single, there.reward)}"
        there.refuse(f"no column {name!r} of one number a step, wanted for `reward`", line)
    return name


def _instruction(mapping: ColumnMapping, there: Contents) -> str:
    name = mapping.instruction or there.instruction
    if name not in there.texts:
        there.refuse(
            f"no text {name!r}, wanted for `instruction`", f"instruction: {nearest(name, there.texts, 'tasks')}"
        )
    return name
