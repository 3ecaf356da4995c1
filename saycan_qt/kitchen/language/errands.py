"""What can be asked of the kitchen robot: kinds of tasks, and an errand that is made of some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

TRASH = "trash can"
SLOTS = {  # kind -> what its arguments are
    "bring": ("object",),
    "bring_from": ("object", "drawer"),
    "trash": ("object",),
    "trash_from": ("object", "drawer"),
    "put": ("object", "place"),
    "put_from": ("object", "drawer", "place"),
    "near": ("object", "target"),
    "open": ("drawer",),
    "close": ("drawer",),
    "store": ("object", "drawer"),
    "store_close": ("object", "drawer"),
    "take_out": ("object", "drawer"),
    "hold": ("object",),
    "hold_from": ("object", "drawer"),
    "find": ("object",),
    "go": ("place",),
    "release": (),
    "give": (),
    "trash_held": (),
    "put_held": ("place",),
    "store_held": ("drawer",),
    "near_held": ("target",),
    "go_held": ("place",),
    "close_all": (),
}
INSIDE = ("bring_from", "trash_from", "put_from", "take_out", "hold_from")  # kinds whose object is in a drawer
OF_HELD = ("release", "give", "trash_held", "put_held", "store_held", "near_held", "go_held")
OF_SEVERAL = ("bring", "trash", "put", "store")  # kinds that go with a set of things as with one


class Unsuitable(Exception):
    """The words and the kitchen that were drawn do not go together."""


@dataclass(frozen=True)
class Task:
    """One part of what is wanted: a kind of SLOTS and its arguments' names, e.g. put a place2."""

    kind: str
    names: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> Task:
        kind, *names = text.split()
        return Task(kind, tuple(names))

    @property
    def slots(self) -> dict[str, str]:
        """Slot of SLOTS -> the name that fills it."""
        return dict(zip(SLOTS[self.kind], self.names, strict=True))


@dataclass
class Wanted:
    """What was drawn: tasks, how they are said, and what is known of the kitchen so far."""

    tasks: list[Task]
    say: str
    values: dict[str, str] = field(default_factory=dict)  # name -> object, place or drawer
    words: dict[str, str] = field(default_factory=dict)  # name -> how it is called
    where: dict[str, str] = field(default_factory=dict)  # object -> place at the start
    absent: set[str] = field(default_factory=set)
    any_of: Sequence[str] = ()  # things of which any will do as the one "object"
    open: set[str] = field(default_factory=set)
    one_open: bool = False  # of the drawers
    by_scene: bool = False  # does only the scene tell which things, places or drawers are meant?
