"""The expert whose plans are learnt: it carries tasks out in a kitchen of symbols, and keeps the skills' texts."""

from __future__ import annotations

from collections.abc import Mapping

from saycan_qt.kitchen.language.errands import TRASH, Task, Unsuitable
from saycan_qt.kitchen.symbolic import DRAWERS, SymbolicKitchen
from skills.library import SkillLibrary
from skills.types import Status


class Expert:
    """Carries tasks out in a kitchen of symbols, and keeps the skills' texts."""

    def __init__(self, kitchen: SymbolicKitchen, library: SkillLibrary) -> None:
        self.kitchen, self.library, self.plan = kitchen, library, list[str]()

    def do(self, name: str) -> None:
        if name not in self.library or self.kitchen.execute(self.library[name]).status is not Status.SUCCEEDED:
            raise Unsuitable(name)
        self.plan.append(self.library[name].text)

    def carry_out(self, task: Task, values: Mapping[str, str]) -> None:
        thing, place, drawer, target = self._arguments(task, values)
        match task.kind:
            case "bring" | "bring_from" | "give":
                self.bring(thing)
            case "trash" | "trash_from" | "trash_held":
                self.put(thing, TRASH)
            case "put" | "put_from" | "put_held":
                self.put(thing, place)
            case "near" | "near_held":
                self.near(thing, target)
            case "open":
                self.open(drawer)
            case "close":
                self.close(drawer)
            case "store" | "store_held":
                self.store(thing, drawer)
            case "store_close":
                self.store(thing, drawer)
                self.close(drawer)
            case "take_out":
                self.take_out(thing)
            case "hold" | "hold_from":
                self.hold(thing)
            case "find":
                self.do(f"find {thing}")
            case "go" | "go_held":
                self.go(place)
            case "close_all":
                self.close_all()
            case "release":
                self.do("put down")
            case _:
                raise ValueError(f"no kind of task {task.kind!r}")

    def _arguments(self, task: Task, values: Mapping[str, str]) -> tuple[str, str, str, str]:
        given = {slot: values[name] for slot, name in task.slots.items()}
        thing = given.get("object", self.kitchen.held)
        return thing, given.get("place", ""), given.get("drawer", ""), given.get("target", "")

    def go(self, place: str) -> None:
        if self.kitchen.place != place:
            self.do(f"go to {place}")

    def release(self) -> None:
        if self.kitchen.held:
            self.do("put down")

    def reach(self, thing: str) -> None:
        if self.kitchen.where.get(thing) != self.kitchen.place:
            self.do(f"find {thing}")

    def hold(self, thing: str) -> None:
        if self.kitchen.held == thing:
            return
        if thing not in self.kitchen.where:
            raise Unsuitable(thing)
        if self.kitchen.where[thing].endswith("drawer"):
            self.take_out(thing)
        self.release()
        self.reach(thing)
        self.do(f"pick {thing}")

    def take_out(self, thing: str) -> None:
        drawer = self.kitchen.where[thing].removesuffix(" drawer")
        self.open(drawer)
        self.do(f"pick {thing} from {drawer} drawer and place on counter")

    def bring(self, thing: str) -> None:
        self.hold(thing)
        self.do("bring it to you")
        self.do("put down")

    def close_all(self) -> None:
        if not self.kitchen.open_drawers:
            raise Unsuitable("closed")
        for drawer in DRAWERS:
            self.close(drawer)

    def put(self, thing: str, place: str) -> None:
        if self.kitchen.where.get(thing) == place:
            raise Unsuitable("there")
        self.hold(thing)
        self.go(place)
        self.do("put down")

    def near(self, thing: str, target: str) -> None:
        if self.kitchen.where.get(thing) == self.kitchen.where.get(target):
            self.release()
            self.reach(thing)
        else:
            self.hold(thing)
            self.reach(target)
        self.do(f"move {thing} near {target}")

    def reach_drawer(self, drawer: str) -> None:
        """Before the drawers, with an empty hand, and no open drawer above."""
        self.go("far counter")
        self.release()
        for upper in DRAWERS[: DRAWERS.index(drawer)]:
            if upper in self.kitchen.open_drawers:
                self.do(f"close {upper} drawer")

    def open(self, drawer: str) -> None:
        self.reach_drawer(drawer)
        if drawer not in self.kitchen.open_drawers:
            self.do(f"open {drawer} drawer")

    def close(self, drawer: str) -> None:
        if drawer in self.kitchen.open_drawers:
            self.go("far counter")
            self.release()
            self.do(f"close {drawer} drawer")

    def store(self, thing: str, drawer: str) -> None:
        if self.kitchen.held != thing or drawer not in self.kitchen.open_drawers:
            if drawer not in self.kitchen.open_drawers:
                self.open(drawer)
            self.hold(thing)
        self.go("far counter")
        self.do(f"place {thing} into {drawer} drawer")
