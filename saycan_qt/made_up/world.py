"""What a robot's skills do, in symbols, and an expert who plans with them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from saycan_qt.made_up.domains import Act
from saycan_qt.made_up.robots import Action, Robot

PERSON = "person"  # where things are that were handed over
UNKNOWN = ""  # where the robot is and all things are, if it does not know; it then takes them to be at hand


class Unsuitable(Exception):
    """What was drawn does not go together."""


@dataclass
class World:
    """How things are; planners.prompts.describe tells of it."""

    robot: Robot
    place: str
    held: str
    objects: dict[str, str]  # thing -> place
    states: dict[str, str] = field(default_factory=dict)  # none is known; see skills.rules.Known
    opened: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)  # acts

    def copy(self) -> World:
        return World(self.robot, self.place, self.held, dict(self.objects), {}, set(self.opened), set(self.done))

    def do(self, action: Action) -> None:
        """Raises Unsuitable where it is not possible."""
        family, arguments = action
        if family not in self.robot.families or arguments not in self.robot.families[family].values:
            raise Unsuitable(f"{family} {arguments}")
        given = dict(zip(self.robot.families[family].slots, arguments, strict=True))
        thing, place = given.get("thing", self.held), given.get("place", "")
        goes = self.robot.can("go")
        match family:
            case "go":
                self._require(self.place != place)
                self.place = place
            case "find":
                self.place = self._place_of(thing)
            case "pick":
                self._require(not self.held and (not goes or self._place_of(thing) == self.place))
                self._require(not self.shut(self._place_of(thing)))
                self.held = thing
                del self.objects[thing]
            case "put" | "put_it":
                self._require(self.held == thing != "" and (not goes or self.place == place) and not self.shut(place))
                self.held, self.objects[thing] = "", place
            case "down":
                self._require(self.held == thing != "")
                self.held, self.objects[thing] = "", self.place
            case "hand":
                self._require(self.held == thing != "")
                self.held, self.objects[thing] = "", PERSON
            case "move":
                self._require(self._place_of(thing) not in (place, PERSON))
                self.objects[thing] = place
            case "fetch":
                self._require(self._place_of(thing) != PERSON)
                self.objects[thing] = PERSON
            case "open" | "close":
                (door,) = arguments
                (self.opened.add if family == "open" else self.opened.discard)(door)
            case _:
                self.done.add(family)

    def shut(self, place: str) -> bool:
        """Would the robot have to open it?"""
        opens = self.robot.families.get("open")
        return (
            opens is not None
            and place in self.robot.domain.lidded
            and (place,) in opens.values
            and place not in self.opened
        )

    def _require(self, holds: bool) -> None:
        if not holds:
            raise Unsuitable("not possible")

    def _place_of(self, thing: str) -> str:
        if thing not in self.objects:
            raise Unsuitable(thing)
        return self.objects[thing]


@dataclass(frozen=True)
class Task:
    """Something wanted: a key of the frames' `tasks`, or "act", "simple", "directed"."""

    kind: str
    thing: str = ""
    place: str = ""
    act: Act | None = None
    template: str = ""  # of what is directed; thing and place are its arguments then
    other: str = ""  # what an act does it with

    @property
    def family(self) -> str:
        """Of the skill that does it, where it is one skill."""
        return self.act.text if self.act else self.template or self.kind

    @property
    def about(self) -> str:
        return self.place if self.kind == "go" else self.thing

    def with_(self, about: str) -> Task:
        return replace(self, place=about) if self.kind == "go" else replace(self, thing=about)


class Expert:
    """Plans by carrying out."""

    def __init__(self, world: World) -> None:
        self.world, self.robot = world, world.robot
        self.plan: list[Action] = []

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(self.robot.text(action) for action in self.plan)

    def do(self, family: str, **arguments: str) -> None:
        if family not in self.robot.families:
            raise Unsuitable(family)
        slots = self.robot.families[family].slots
        action = (family, tuple(arguments[slot] for slot in slots))
        self.world.do(action)
        self.plan.append(action)

    def carry_out(self, task: Task) -> None:
        """Raises Unsuitable."""
        match task.kind:
            case "deliver":
                self.deliver(task.thing, task.place)
            case "fetch":
                self.fetch(task.thing)
            case "hold":
                if self.world.held == task.thing:
                    raise Unsuitable("held")
                self.hold(task.thing)
            case "find":
                self.find(task.thing)
            case "go":
                self.do("go", place=task.place)
            case "open" | "close":
                self.reach(task.thing)
                self.do(task.kind, door=task.thing)
            case "on" | "off":
                self.do(task.kind, device=task.thing)
            case "down" | "give" | "put_held":
                if not self.world.held:
                    raise Unsuitable("nothing is held")
                if task.kind == "down":
                    self.release()
                elif task.kind == "give":
                    self.do("hand", thing=self.world.held)
                else:
                    self.deliver(self.world.held, task.place)
            case "act":
                assert task.act is not None
                self.act(task.act, task.thing, task.place, task.other)
            case _:
                family = task.template
                self.do(family, **{"thing": task.thing, "direction": task.place})

    def reach(self, place: str) -> None:
        """To where it is done, for a robot that goes there."""
        places = self.robot.families["go"].values if self.robot.can("go") else ()
        if (place,) in places and self.world.place != place:
            self.do("go", place=place)

    def find(self, thing: str) -> None:
        if thing == self.world.held:
            raise Unsuitable("held")
        place = self.world.objects.get(thing)
        if self.robot.can("find"):
            self.do("find", thing=thing)
        elif place is None or not self.robot.can("go") or place == self.world.place:
            raise Unsuitable(thing)
        else:
            self.reach(place)

    def open(self, place: str) -> None:
        """Before something is taken from there or put there."""
        if self.world.shut(place):
            self.release()
            self.reach(place)
            self.do("open", door=place)

    def hold(self, thing: str) -> None:
        if self.world.held == thing:
            return
        place = self.world.objects.get(thing)
        if place is None or place == PERSON:
            raise Unsuitable(thing)
        self.open(place)
        self.release()
        if self.robot.can("go", "pick") and place != self.world.place:
            self.find(thing)
        self.do("pick", thing=thing)

    def release(self) -> None:
        held = self.world.held
        if not held:
            return
        if self.robot.can("down"):
            self.do("down", thing=held)
        elif self.robot.can("go") and self.world.place:
            self.put(self.world.place)
        else:
            raise Unsuitable("nowhere to put it")

    def put(self, place: str) -> None:
        if self.robot.can("put"):
            self.do("put", thing=self.world.held, place=place)
        elif self.robot.can("put_it"):
            self.do("put_it", place=place)
        elif self.robot.can("down", "go"):
            self.do("down", thing=self.world.held)
        else:
            raise Unsuitable("put")

    def deliver(self, thing: str, place: str) -> None:
        if self.world.objects.get(thing) == place:
            raise Unsuitable("there")
        if self.robot.can("move"):
            self.do("move", thing=thing, place=place)
            return
        self.open(place)
        self.hold(thing)
        self.reach(place)
        self.put(place)

    def fetch(self, thing: str) -> None:
        if self.robot.can("fetch"):
            self.do("fetch", thing=thing)
            return
        self.hold(thing)
        self.do("hand", thing=thing)

    def act(self, act: Act, thing: str, place: str, other: str) -> None:
        """place: for an act that can be asked for anywhere, where."""
        if act.needs in self.robot.families and act.needs not in self.world.done:
            self.do(act.needs)
        self.reach(place or thing)
        if thing in self.world.objects:
            self.reach(self.world.objects[thing])
        self.do(act.text, **{act.slot: thing, act.with_slot: other})


def draw(robot: Robot, rng: np.random.Generator, absent: tuple[str, ...] = ()) -> World:
    """How things may be, in the order in which the scene's line tells of them. absent: what is not there."""
    if not robot.sees:
        return World(robot, "", "", dict.fromkeys(robot.movable, UNKNOWN))
    where = robot.places if len(robot.places) > 1 else tuple(robot.domain.places)
    share = float(rng.choice([0.6, 0.85, 1.0]))
    things = [str(thing) for thing in rng.permutation(robot.movable) if rng.random() < share and thing not in absent]
    held = things.pop() if things and robot.can("pick") and rng.random() < 0.12 else ""
    here = str(rng.choice(robot.places)) if robot.can("go") else ""
    objects = {thing: str(rng.choice(where)) for thing in things}
    seen = list(dict.fromkeys(objects.values()))
    return World(robot, here, held, dict(sorted(objects.items(), key=lambda there: seen.index(there[1]))))
