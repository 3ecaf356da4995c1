"""What people say to a made-up robot: single tasks, several, sets, corrections, conditions, and what it cannot do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planners.prompts import CANNOT
from saycan_qt.made_up import world as worlds
from saycan_qt.made_up.domains import Act, Domain, frames
from saycan_qt.made_up.robots import DONE, Robot
from saycan_qt.made_up.wording import Wording, filled
from saycan_qt.made_up.world import UNKNOWN, Expert, Task, Unsuitable, World
from skills.library import placeholders

KINDS = {  # each is a method of Sentences, and how often it is drawn
    "single": 0.16,
    "verbatim": 0.03,
    "several": 0.22,
    "shared": 0.11,
    "sets": 0.12,
    "counts": 0.04,
    "times": 0.02,
    "corrected": 0.08,
    "untouched": 0.04,
    "condition": 0.06,
    "held": 0.02,
    "referred": 0.03,
    "fetched": 0.04,
    "foreign": 0.03,
    "impossible": 0.09,
}
IMPOSSIBLE = {"general": 0.2, "other": 0.25, "own": 0.2, "absent": 0.15, "handling": 0.12, "place": 0.08}
NONE_THERE = 0.3  # of conditions without an "otherwise", the share that do not hold
NAMES = ("a", "b", "c")
SMALL = re.compile(r"\b(the|a|an|to|of|in|on|at|me|my|for|and|with|is|are|it|up|off|out|for)\b")


@dataclass(frozen=True)
class Said:
    """A sentence, and what answers it."""

    instruction: str
    plan: tuple[str, ...]
    world: World  # at the start
    needs_scene: bool  # does the plan follow from what the scene tells?
    kind: str


class Sentences:
    """Draws what is said to one robot."""

    def __init__(self, robot: Robot, others: Sequence[Domain], rng: np.random.Generator) -> None:
        self.robot, self.others, self.rng = robot, others, rng
        self.wording = Wording(robot, rng)
        self.world = World(robot, "", "", {})
        self.kinds = self._kinds_of_tasks()
        self.by_scene = False

    def draw(self, kind: str = "") -> Said:
        for _ in range(400):
            chosen = kind or str(self.rng.choice(list(KINDS), p=np.array(list(KINDS.values())) / sum(KINDS.values())))
            self.world, self.by_scene = worlds.draw(self.robot, self.rng), False
            try:
                text, tasks = getattr(self, chosen)()
                plan = self.plan(tasks) if tasks is not None else (CANNOT,)
            except Unsuitable:
                continue
            text = self.wording.spoken(text, plain=chosen in ("foreign", "verbatim"))
            goes = self.robot.can("go") and bool(self.robot.movable) and plan != (CANNOT,)
            if chosen == "fetched":  # it says itself where the thing is
                goes = bool(self.world.held) or self.world.place == self.world.objects.get(
                    tasks[0].thing if tasks else ""
                )
            elif tasks is not None:
                goes = goes or self.plan_unseen(tasks) != plan
            needs = self.robot.sees and (self.by_scene or goes)
            return Said(text, plan, self.world.copy(), needs, chosen)
        return self.draw("impossible" if kind != "impossible" else "single")

    def plan_unseen(self, tasks: Sequence[Task]) -> tuple[str, ...]:
        """As a robot does it that does not know how things are; () where none can."""
        try:
            return self.plan(tasks, World(self.robot, "", "", dict.fromkeys(self.robot.movable, UNKNOWN)))
        except Unsuitable:
            return ()

    def plan(self, tasks: Sequence[Task], world: World | None = None) -> tuple[str, ...]:
        """No tasks: what was asked for under some condition need not be done. world: not as it is."""
        if not tasks:
            return (DONE,)
        expert = Expert((world or self.world).copy())
        for task in tasks:
            expert.carry_out(task)
        if not 0 < len(expert.plan) <= 14:
            raise Unsuitable("length")
        return (*expert.texts, DONE)

    # -- tasks -------------------------------------------------------------------------------------------------------

    def _kinds_of_tasks(self) -> dict[str, float]:
        """What may be asked of this robot, and how often."""
        can, kinds = self.robot.can, dict[str, float]()
        puts = can("put") or can("put_it") or can("down", "go")
        if can("move") or (can("pick") and puts):
            kinds["deliver"] = 3.0
        if can("fetch") or can("pick", "hand"):
            kinds["fetch"] = 2.0
        if can("pick"):
            kinds["hold"] = 0.7
        if can("find"):
            kinds["find"] = 0.7
        if can("go"):
            kinds["go"] = 1.0
        for key in ("open", "close", "on", "off"):
            if can(key):
                kinds[key] = 0.5
        if self.robot.acts:
            kinds["act"] = 0.6 * len(self.robot.acts)
        if self.robot.directed:
            kinds["directed"] = 0.8
        return kinds

    def task(self, kinds: Sequence[str] = ()) -> Task:
        options = {kind: weight for kind, weight in self.kinds.items() if not kinds or kind in kinds}
        if not options:
            raise Unsuitable("kinds")
        share = np.array(list(options.values()))
        kind = str(self.rng.choice(list(options), p=share / share.sum()))
        if kind == "act":
            act = self.pick(self.robot.acts)
            values = self.pick(self.robot.families[act.text].values)
            thing, other = (*values, "", "")[:2]
            place = ""
            if not act.slot and any("{p}" in way or "{on}" in way for way in act.ways) and self.robot.can("go"):
                place = self.pick(self.robot.places) if self.rng.random() < 0.6 else ""
            return Task("act", thing, place, act, other=other)
        if kind == "directed":
            template, _ = self.pick(self.robot.directed)
            family = self.robot.families[template]
            given = dict(zip(family.slots, self.pick(family.values), strict=True))
            return Task("directed", given.get("thing", ""), given["direction"], template=template)
        return Task(kind, *self._arguments(kind))

    def _arguments(self, kind: str) -> tuple[str, str]:
        there = list(self.world.objects)
        match kind:
            case "deliver":
                if not there:
                    raise Unsuitable("things")
                thing = self.pick(there)
                families = self.robot.families
                key = next((key for key in ("move", "put", "put_it") if key in families), "go")
                at = families[key].slots.index("place")
                return thing, self.pick(sorted({values[at] for values in families[key].values}))
            case "fetch" | "hold" | "find":
                if not there:
                    raise Unsuitable("things")
                return self.pick(there), ""
            case "go":
                return "", self.pick(self.robot.families["go"].values)[0]
        return self.pick(self.robot.families[kind].values)[0], ""

    def pick(self, options: Sequence[Any]) -> Any:
        if not len(options):
            raise Unsuitable("nothing to choose from")
        return options[int(self.rng.integers(len(options)))]

    # -- clauses -----------------------------------------------------------------------------------------------------

    def clause(self, task: Task, joined: bool = True, noun: str = "") -> str:
        """joined: only what can be joined to other clauses. noun: what the thing is called."""
        said = self._frame(task, joined)
        if noun and task.kind == "go":
            if "{p}" not in said:
                raise Unsuitable(said)
            said = said.replace("{p}", noun)
        elif noun:
            slot = task.act.slot if task.act else ""
            said = filled(said, slot, noun) if slot else said
            said = re.sub(r"\{[tds]\}", lambda _: noun, said)
        slot = task.act.slot if task.act else ""
        if task.other:
            assert task.act is not None
            said = self.wording.fill(said, task.other, slot=task.act.with_slot)
        said = self.wording.fill(said, task.thing, task.place, slot)
        if "{" in said:
            raise Unsuitable(said)
        return said

    def _frame(self, task: Task, joined: bool) -> str:
        if task.kind == "act":
            assert task.act is not None
            ways = [*task.act.ways, *([] if joined else task.act.sentences)]
            placed = [way for way in ways if "{p}" in way or "{on}" in way]
            ways = placed if task.place else [w for w in ways if w not in placed]
            weights = np.array([2.0, *[1.0] * (len(ways) - 1)]) if ways else np.zeros(0)
            if not ways:
                raise Unsuitable("ways")
            return str(self.rng.choice(ways, p=weights / weights.sum()))
        if task.kind == "directed":
            ways = list(dict(self.robot.directed)[task.template])
            direction = str(self.pick(frames()["directions"][task.place]))
            return str(self.pick(ways)).replace("{dir}", direction)
        entry = frames()["tasks"][task.kind]
        sentences = [] if joined else entry.get("sentences", [])
        if sentences and self.rng.random() < 0.25:
            return str(self.pick(sentences))
        first = 0 if self.rng.random() < 0.35 else int(self.rng.integers(len(entry["clauses"])))
        return str(entry["clauses"][first])

    # -- kinds of sentences ------------------------------------------------------------------------------------------

    def single(self) -> tuple[str, list[Task] | None]:
        task = self.task()
        return self.clause(task, joined=False), [task]

    def verbatim(self) -> tuple[str, list[Task] | None]:
        """A skill's own text; what it needs comes first all the same."""
        task = self.task(["act", "go", "open", "close", "on", "off", "directed"])
        if task.place and task.kind == "act":
            raise Unsuitable("placed")
        plan = self.plan([task])
        return plan[-2], [task]

    def several(self) -> tuple[str, list[Task] | None]:
        luck = self.rng.random()
        kind = "two" if luck < 0.5 else "turned" if luck < 0.75 else "three"
        frame = str(self.pick(frames()["compound"][kind]))
        tasks = [self.task() for _ in range(3 if kind == "three" else 2)]
        if len(set(tasks)) < len(tasks):
            raise Unsuitable("twice")
        said = {str(n): self.clause(task) for n, task in enumerate(tasks, 1)}
        if kind == "two" and tasks[0].kind == "hold" and self.rng.random() < 0.5:
            tasks[1] = replace(tasks[1], kind="put_held", thing="") if tasks[1].kind == "deliver" else tasks[1]
            said["2"] = self.clause(tasks[1])
        return re.sub(r"\{(\d)\}", lambda found: said[found[1]], frame), tasks

    def shared(self) -> tuple[str, list[Task] | None]:
        """The same with two or three things."""
        task = self.task(["deliver", "fetch", "act", "open", "close", "on", "off", "go", "directed"])
        late = self.rng.random() < 0.25
        count = 2 if late or self.rng.random() < 0.65 else 3
        options = [thing for thing in self._like(task) if thing != task.about]
        if not task.about or len(options) < count - 1:
            raise Unsuitable("things")
        things = [task.about, *(options[int(i)] for i in self.rng.permutation(len(options))[: count - 1])]
        nouns = dict(zip(NAMES, map(self.wording.noun, things), strict=False))
        tasks = [task.with_(thing) for thing in things]
        frame = str(self.pick(frames()["shared"]["late" if late else "list" if count == 2 else "long"]))
        if late:
            return frame.format(clause=self.clause(task, noun=nouns["a"]), **nouns), tasks
        return self.clause(task, noun=frame.format(**nouns)), tasks

    def _like(self, task: Task) -> list[str]:
        """What this can be done to."""
        if task.kind in ("deliver", "fetch", "hold", "find"):
            return list(self.world.objects)
        family = self.robot.families[task.family]
        return list(dict.fromkeys(values[0] for values in family.values)) if family.slots else []

    def _of_kind(self, task: Task) -> tuple[str, list[str]]:
        """The kind of its thing, and all of the kind there are, in the order in which the robot knows of them."""
        kind = next((k for k, names in self.robot.domain.things.items() if task.about in names), "")
        if not kind:
            slots = placeholders(self.robot.families[task.family].template)
            if not slots:
                raise Unsuitable("kind")
            return slots[0], self._like(task)
        if self.world.held in self.robot.domain.things[kind]:  # is it one of them?
            raise Unsuitable("held")
        like = self._like(task)
        things = [thing for thing in like if thing in self.robot.domain.things[kind]]
        if task.kind in ("deliver", "fetch"):
            return kind, things
        seen = [thing for thing in self.world.objects if thing in things]
        return kind, seen if seen else things

    def sets(self) -> tuple[str, list[Task] | None]:
        task, sets = self.task(["deliver", "fetch", "act", "close", "open", "on", "off", "go"]), frames()["sets"]
        if not task.about:
            raise Unsuitable("thing")
        moved = task.kind in ("deliver", "fetch")
        luck = self.rng.random() if self.robot.sees else self.rng.uniform(0.3, 1)
        kind, things = "", list(self.world.objects)
        if not (moved and luck < 0.45):
            kind, things = self._of_kind(task)
            words = self.wording.kinds(kind)
        elif self.world.held:
            raise Unsuitable("held")
        at = ""
        if moved and luck < 0.3:
            at = self.world.objects[task.thing]
            said = str(self.pick(sets["there"]))
        elif moved and luck < 0.45:
            said = str(self.pick(sets["everywhere"]))
        elif moved and luck < 0.65 and self.robot.sees:
            at = self.world.objects[task.thing]
            said = str(self.pick(sets["kind there"]))
        elif len(things) == 2 and self.rng.random() < 0.4:
            said = str(self.pick(sets["both"]))
        else:
            said = str(self.pick(sets["all"]))
        self.by_scene = moved or bool(set(things) & set(self.world.objects))
        things = [t for t in things if not at or self.world.objects[t] == at]
        if task.kind == "deliver":
            if at == task.place:
                raise Unsuitable("there")
            things = [t for t in things if self.world.objects[t] != task.place]
        if kind:
            said = said.replace("{kinds}", words["kinds"]).replace("{kind}", words["kind"])
        if at:
            said = said.replace("{on}", self.wording.at(at))
        if len(things) > 1 and self.rng.random() < 0.3:
            left = self.pick(things)
            things = [thing for thing in things if thing != left]
            said = str(self.pick(sets["but"])).format(these=said, t=self.wording.noun(left))
        if not 1 <= len(things) <= 6 or (len(things) == 1 and not at):
            raise Unsuitable("how many")
        if task.kind == "go" and things[0] == self.world.place:
            raise Unsuitable("there")
        return self.clause(task, noun=said), [task.with_(thing) for thing in things]

    def counts(self) -> tuple[str, list[Task] | None]:
        """Some of a kind: those that come first."""
        task = self.task(["deliver", "fetch", "act"])
        if not task.thing:
            raise Unsuitable("thing")
        kind, things = self._of_kind(task)
        if task.kind == "deliver":
            things = [t for t in things if self.world.objects[t] != task.place]
        most = min(len(things) - (self.rng.random() < 0.8), 4)
        if most < 2:
            raise Unsuitable("few")
        count = int(self.rng.integers(2, most + 1))
        number = str(self.pick(frames()["numbers"][count]))
        self.by_scene = bool(set(things) & set(self.world.objects))
        ways = frames()["sets"]["count"]
        said = str(self.pick(ways[:1] if number.endswith(" of") else ways))  # not "any a couple of"
        said = said.format(n=number, **self.wording.kinds(kind))
        return self.clause(task, noun=said), [replace(task, thing=thing) for thing in things[:count]]

    def times(self) -> tuple[str, list[Task] | None]:
        task = self.task(["act", "directed"])
        if task.thing or (task.place and task.kind == "act"):
            raise Unsuitable("thing")
        count = int(self.rng.integers(2, 4))
        return f"{self.clause(task)} {self.pick(frames()['times'][count])}", [task] * count

    def corrected(self) -> tuple[str, list[Task] | None]:
        if self.rng.random() < 0.55:
            task = self.task()
            if task.kind == "deliver" and self.rng.random() < 0.3:
                wrong = str(self.pick([place for place in self.robot.places if place != task.place]))
                said = str(self.pick(frames()["corrected"]))
                said = said.format(wrong=self.wording.noun(wrong), right=self.wording.noun(task.place))
                frame = self._frame(task, joined=True)
                if "{p}" not in frame:
                    raise Unsuitable(frame)
                return self.wording.fill(frame.replace("{p}", said), task.thing), [task]
            if not task.about:
                raise Unsuitable("thing")
            wrong = str(self.pick([thing for thing in self._like(task) if thing != task.about]))
            right, said_wrong = self.wording.noun(task.about), self.wording.noun(wrong)
            if (short := self._short(task.about, wrong)) and self.rng.random() < 0.6:
                right = short
            said = str(self.pick(frames()["corrected"])).format(wrong=said_wrong, right=right)
            return self.clause(task, noun=said), [task]
        task, other = self.task(), self.task()
        if task == other:
            raise Unsuitable("twice")
        frame = str(self.pick(frames()["corrected clause"]))
        return frame.format(right=self.clause(task), wrong=self.clause(other)), [task]

    @staticmethod
    def _short(right: str, wrong: str) -> str:
        """ "the blue one", where the wrong one is red."""
        first, *rest = right.split()
        return f"the {first} one" if rest and rest == wrong.split()[1:] else ""

    def untouched(self) -> tuple[str, list[Task] | None]:
        task = self.task()
        others = [thing for thing in self._like(task) if thing != task.thing] if task.thing else []
        frame = str(self.pick(frames()["untouched"]))
        other = self.wording.noun(str(self.pick(others)))
        return frame.format(clause=self.clause(task), o=other), [task]

    def condition(self) -> tuple[str, list[Task] | None]:
        """On what the robot sees."""
        if not self.robot.sees:
            raise Unsuitable("blind")
        self.by_scene = True
        said, holds = self._what_may_be()
        task, conditions = self.task(), frames()["conditions"]
        luck = self.rng.random()
        if luck < 0.5:
            other = self.task()
            if other == task:
                raise Unsuitable("twice")
            frame = str(self.pick(conditions["both"]))
            filled = frame.replace("{if}", said).replace("{1}", self.clause(task)).replace("{2}", self.clause(other))
            return filled, [task if holds else other]
        if luck > 0.85:
            holds = not holds
            frame = str(self.pick(conditions["unless"]))
        else:
            frame = str(self.pick(conditions["one"]))
        if not holds and self.rng.random() > NONE_THERE:
            raise Unsuitable("nothing to do")
        text = frame.replace("{if}", said).replace("{1}", self.clause(task))
        return text, [task] if holds else []

    def _what_may_be(self) -> tuple[str, bool]:
        """A condition, and whether it holds."""
        conditions, world = frames()["conditions"], self.world
        options = []
        if world.objects:
            options += ["lies", "lies", "lies", "anything"]
        if self.robot.can("pick"):
            options += ["held", "free"]
        if world.place:
            options.append("here")
        match self.pick(options):
            case "lies":
                thing = str(self.pick(self.robot.movable))
                there = world.objects.get(thing, "")
                at = there if there and self.rng.random() < 0.5 else str(self.pick(self.robot.places))
                frame = str(self.pick(conditions["lies"])).replace("{a}", self.wording.a(thing))
                return self.wording.fill(frame, thing, at), there == at
            case "anything":
                at = str(self.pick(self.robot.places))
                return self.wording.fill(str(self.pick(conditions["anything"])), "", at), at in world.objects.values()
            case "here":
                at = world.place if self.rng.random() < 0.5 else str(self.pick(self.robot.places))
                return self.wording.fill(str(self.pick(conditions["here"])), "", at), at == world.place
            case kind:
                return str(self.pick(conditions[str(kind)])), bool(world.held) == (kind == "held")

    def held(self) -> tuple[str, list[Task] | None]:
        """About what is in the hand."""
        if not self.robot.can("pick") or not self.robot.sees:
            raise Unsuitable("no hand")
        if not self.world.held:
            thing = str(self.pick(list(self.world.objects)))
            del self.world.objects[thing]
            self.world.held = thing
        self.by_scene = True
        kinds = ["down", "put_held", *(["give"] if self.robot.can("hand") else [])]
        kind = str(self.pick(kinds))
        place = str(self.pick(self.robot.places)) if kind == "put_held" else ""
        task = Task(kind, "", place)
        first = self.task(["go", "on", "off", "open"]) if self.rng.random() < 0.25 else None
        if first is None:
            return self.clause(task, joined=False), [task]
        return f"{self.clause(first)} and {self.clause(task)}", [first, task]

    def referred(self) -> tuple[str, list[Task] | None]:
        """A thing by where it is, a place by what is there."""
        if not self.robot.sees:
            raise Unsuitable("blind")
        task, references = self.task(["deliver", "fetch", "hold"]), frames()["references"]
        place = self.world.objects[task.thing]
        self.by_scene = True
        luck = self.rng.random()
        if luck < 0.35 and task.kind == "deliver":
            others = [t for t, at in self.world.objects.items() if at == task.place and t != task.thing]
            said = str(self.pick(references["beside"])).replace("{o}", self.wording.noun(str(self.pick(others))))
            return f"{self.pick(['put', 'bring', 'take', 'move'])} {self.wording.noun(task.thing)} {said}", [task]
        there = [thing for thing, at in self.world.objects.items() if at == place]
        if luck < 0.6 and len(there) == 1:
            said = self.wording.fill(str(self.pick(references["thing there"])), "", place)
            return self.clause(task, noun=said), [task]
        kind, things = self._of_kind(task)
        if len([thing for thing in things if self.world.objects[thing] == place]) != 1:
            raise Unsuitable("several")
        frame = str(self.pick(references["only there"])).format(kind=kind.replace("_", " "), on="{on}")
        return self.clause(task, noun=self.wording.fill(frame, "", place)), [task]

    def fetched(self) -> tuple[str, list[Task] | None]:
        """With the place where a thing is, which the robot may not know."""
        task = self.task(["deliver", "fetch", "hold"])
        if not self.robot.sees:
            self.world.objects[task.thing] = str(
                self.pick([place for place in self.robot.places if place != task.place])
            )
        place = self.world.objects[task.thing]
        source = self.wording.noun(place)
        frame = str(self.pick(frames()["fetched"][task.kind])).replace("{from}", f"from {source}")
        frame = frame.replace("{there}", self.wording.at(place))
        return self.wording.fill(frame, task.thing, task.place), [task]

    # -- other languages ---------------------------------------------------------------------------------------------

    def foreign(self) -> tuple[str, list[Task] | None]:
        number, (_, language) = self.pick(list(enumerate(frames()["languages"].items())))
        tasks = [self.task(["fetch", "hold", "find", "open", "close", "on", "off", "act"])]
        if self.rng.random() < 0.2:
            tasks.append(self.task(["fetch", "hold", "open", "close", "on", "off", "act"]))
        said = [self._in(language, number, task) for task in tasks]
        frame = str(self.pick(language["two"])) if len(said) > 1 else "{1}"
        text = frame.replace("{1}", said[0]).replace("{2}", said[-1])
        return str(self.pick(language["polite"])).replace("{}", text), tasks

    def _in(self, language: dict, number: int, task: Task) -> str:
        if task.kind == "act":
            assert task.act is not None
            verb = re.fullmatch(r"(\w+) the \{\w+\}", task.act.text)
            ways = [language["verbs"][verb[1]]] if verb and verb[1] in language["verbs"] else []
        else:
            ways = language.get(task.kind, [])
        noun = frames()["nouns"].get(task.thing)
        if noun is None and self.rng.random() > 0.1:
            raise Unsuitable("no such word")
        return str(self.pick(ways)).replace("{t}", noun[number] if noun else f"the {task.thing}")

    # -- what it cannot do -------------------------------------------------------------------------------------------

    def impossible(self) -> tuple[str, list[Task] | None]:
        kind = str(self.rng.choice(list(IMPOSSIBLE), p=list(IMPOSSIBLE.values())))
        text: str = getattr(self, f"_impossible_{kind}")()
        return text, None

    def _words(self) -> set[str]:
        """All that its skills name."""
        return set(re.findall(r"\w+", " ".join(skill.text for skill in self.robot.skills).lower()))

    def _strange(self, text: str) -> str:
        if set(re.findall(r"\w+", SMALL.sub("", text.lower()))) & self._words():
            raise Unsuitable("it may be able to")
        return text

    def _impossible_general(self) -> str:
        return self._strange(str(self.pick(frames()["impossible"])))

    def _impossible_other(self) -> str:
        """What a robot elsewhere does."""
        domain = self.pick([domain for domain in self.others if domain is not self.robot.domain])
        assert isinstance(domain, Domain)
        act = self.pick((*domain.acts, *domain.simple))
        assert isinstance(act, Act)
        words = {"place": tuple(domain.places), "door": domain.doors, "switch": domain.switches}
        thing = str(self.pick(words.get(act.slot) or domain.things[act.slot])) if act.slot else ""
        text = self.wording.fill(str(self.pick(act.ways)), thing, slot=act.slot)
        if "{" in text:
            raise Unsuitable("two things")
        self._strange(act.text.split()[0])
        return self._strange(text) if self.rng.random() < 0.7 else text

    def _impossible_own(self) -> str:
        """What others do here, and this one does not."""
        acts = [a for a in (*self.robot.domain.acts, *self.robot.domain.simple) if a.text not in self.robot.families]
        act = self.pick(acts)
        assert isinstance(act, Act)
        self._strange(act.text.split()[0])
        if not act.slot:
            return self._strange(str(self.pick(act.ways)))
        domain = self.robot.domain
        words = {"place": self.robot.places, "door": domain.doors, "switch": domain.switches}
        thing = str(self.pick(words.get(act.slot) or domain.things[act.slot]))
        if act.with_slot:
            raise Unsuitable("two things")
        return self.wording.fill(str(self.pick(act.ways)), thing, slot=act.slot)

    def _impossible_absent(self) -> str:
        """With something that it does not know, or that is not there."""
        task = self.task(["act", "deliver", "fetch", "open", "close", "on", "off"])
        if not task.thing or task.thing in self.robot.places:
            raise Unsuitable("thing")
        like, domain = self._like(task), self.robot.domain
        if task.kind in ("deliver", "fetch") and self.rng.random() < 0.3:
            self.by_scene = True
            absent = [thing for thing in self.robot.movable if thing not in (*self.world.objects, self.world.held)]
            if self.robot.can("find"):
                raise Unsuitable("it would look for it")
        else:
            groups = [*domain.things.values(), domain.doors, domain.switches]
            absent = [t for group in groups if set(group) & set(like) for t in group if t not in like]
            if self.rng.random() < 0.3:
                absent = [t for other in self.others for group in other.things.values() for t in group if t not in like]
            absent = [thing for thing in absent if thing not in (*self.robot.movable, self.world.held)]
        thing = str(self.pick(absent))
        if set(thing.lower().split()) & self._words() and task.kind not in ("deliver", "fetch"):
            raise Unsuitable("alike")
        return self.clause(replace(task, thing=thing), joined=False)

    def _impossible_handling(self) -> str:
        """Of a robot that handles nothing."""
        if self.robot.movable:
            raise Unsuitable("hand")
        thing = str(self.pick([t for things in self.robot.domain.things.values() for t in things]))
        task = Task(str(self.pick(["fetch", "deliver"])), thing, str(self.pick(tuple(self.robot.domain.places))))
        return self.clause(task)

    def _impossible_place(self) -> str:
        task = self.task(["deliver", "go"])
        other = self.pick([domain for domain in self.others if domain is not self.robot.domain])
        assert isinstance(other, Domain)
        place = str(self.pick(tuple(other.places)))
        if set(place.split()) & self._words():
            raise Unsuitable("alike")
        return self.clause(replace(task, place=place))
