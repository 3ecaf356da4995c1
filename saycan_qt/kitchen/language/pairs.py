"""Instructions and the plans that answer them, generated: what the language model's adapter is fine-tuned on.

pairs = PairGenerator(SkillLibrary.load())
pairs.generate(np.random.default_rng(0))     # Pair(scene=Scene(...), instruction="toss the cola, then ...", plan=(...))

The wording is people's: `phrases/` holds nouns, verbs, whole situations and ways to join them. What is generated is
which of them come together, in which kitchen; the plan is an expert's, carried out in that kitchen step by step.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from planners.prompts import CANNOT, describe, numbered, one_line
from saycan_qt.kitchen.symbolic import DRAWERS, IN_HAND, WORKTOPS, SymbolicKitchen
from skills.connective import OPERATOR
from skills.library import SkillLibrary
from skills.types import Status

PHRASES = Path(__file__).with_name("phrases")
HELD_OUT = 20  # one way to say something in so many is kept from training, to validate on
TRASH = "trash can"
EVERYTHING = "everything"
TAUGHT, OVERLOOKED, SCENELESS = 0.04, 0.06, 0.06  # shares of pairs, see text_of
LETTERS = "aabcdeefghiijklmnoopqrstuuvwxyz"
ARTICLE = re.compile(r"^(an?|some|any) ")
LONGEST_PLAN = 19  # steps, "done" not counted
INSIDE = ("bring_from", "trash_from", "put_from", "take_out", "hold_from")  # kinds whose object is in a drawer
OF_HELD = ("release", "give", "trash_held", "put_held", "store_held", "near_held", "go_held")
OF_SEVERAL = ("bring", "trash", "put", "store")  # kinds that go with a set of things as with one
NUMBERS = {2: re.compile(r"\b(both|two)\b", re.IGNORECASE), 3: re.compile(r"\bthree\b", re.IGNORECASE)}
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
SOURCES = {  # what an instruction is made from, and how often
    "sentence": 0.08,
    "clause": 0.04,
    "wish": 0.06,
    "situation": 0.20,
    "frame": 0.19,
    "shared": 0.14,
    "held": 0.11,
    "sets": 0.10,
    "swap": 0.03,
    "impossible": 0.05,
}
SEVERAL = 0.2  # share of errands in which one thing becomes a set of them
UNTOUCHED, CORRECTED, EITHER, BY_NEIGHBOUR, BY_OPENNESS = 0.05, 0.05, 0.02, 0.06, 0.12  # of what may be said so
POLITE = (
    "please {}",
    "{}, please",
    "could you {}?",
    "can you {}",
    "I want you to {}",
    "hey robot, {}",
    "robot: {}",
    "would you {}?",
    "{} thanks",
    "kindly {}",
    "{} now",
    "you should {}",
    "go {}",
    "hi! {}",
    "ok, {}",
)


@dataclass(frozen=True)
class Task:
    """One part of what is wanted: a kind of SLOTS and its arguments' names, e.g. put a place2."""

    kind: str
    names: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> Task:
        kind, *names = text.split()
        return Task(kind, tuple(names))


@dataclass(frozen=True)
class Pair:
    """An instruction in a kitchen, and the texts of the skills that carry it out, "done" last."""

    kitchen: SymbolicKitchen  # at the start
    instruction: str
    plan: tuple[str, ...]
    source: str  # of SOURCES


def text_of(generator: PairGenerator, rng: np.random.Generator) -> tuple[str, list[tuple[int, int]]]:
    """A pair as the model reads it, and where the steps are: from the blank after a number to the line's end.

    Now and then without a scene, as a planner may not know it; with another pair before it, to be overlooked; or with
    one that tells what an instruction in made-up words means, as the user's own examples do.
    """
    pair, luck = generator.generate(rng), rng.random()
    instruction, before = pair.instruction, ""
    if luck < TAUGHT:
        instruction = " ".join(
            "".join(rng.choice(list(LETTERS), rng.integers(3, 8))) for _ in range(rng.integers(1, 4))
        )
        before = numbered(instruction, pair.plan) + "\n\n"
    elif luck < TAUGHT + OVERLOOKED:
        other = generator.generate(rng)
        before = numbered(other.instruction, other.plan) + "\n\n"
    scene = "" if rng.random() < SCENELESS else describe(pair.kitchen.observe()) + "\n"
    text = before + scene + f"Instruction: {instruction}\n"
    spans = []
    for number, step in enumerate(pair.plan, 1):
        text += f"{number}."
        start = len(text)
        text += f" {step}\n"
        spans.append((start, len(text)))
    return text, spans


class Unsuitable(Exception):
    """The words and the kitchen that were drawn do not go together."""


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
        given = dict(zip(SLOTS[task.kind], (values[name] for name in task.names), strict=True))
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


@dataclass
class Phrases:
    """The wording, of which a part is kept to validate on."""

    nouns: dict[str, Any]
    tasks: dict[str, dict[str, list[str]]]
    situations: list[dict[str, Any]]
    compound: dict[str, Any]
    impossible: list[str]

    @staticmethod
    @functools.cache
    def load(folder: Path = PHRASES) -> Phrases:
        def read(name: str) -> Any:
            return yaml.load((folder / f"{name}.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)

        return Phrases(read("nouns"), read("tasks"), read("situations"), read("compound"), read("impossible")["say"])


def is_held_out(phrase: str) -> bool:
    return zlib.crc32(phrase.encode()) % HELD_OUT == 0


@dataclass
class Wanted:
    """What was drawn: tasks, how they are said, and what is known of the kitchen so far."""

    tasks: list[Task]
    say: str
    values: dict[str, str] = field(default_factory=dict)  # name -> object, place or drawer
    words: dict[str, str] = field(default_factory=dict)  # name -> how it is called
    where: dict[str, str] = field(default_factory=dict)  # object -> place at the start
    absent: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)
    one_open: bool = False  # of the drawers


class PairGenerator:
    """Draws pairs. held_out: with the ways to say things that are kept from training."""

    def __init__(self, library: SkillLibrary, phrases: Phrases | None = None, held_out: bool = False) -> None:
        self.library, self.phrases, self.held_out = library, phrases or Phrases.load(), held_out
        self.pairs = [(s.arguments["object"], s.arguments["target"]) for s in library.families["move near"]]
        self.categories = {
            name: entry | {"members": [m for m in entry["members"] if m in library.objects]}
            for name, entry in self.phrases.nouns["categories"].items()
        }

    def generate(self, rng: np.random.Generator) -> Pair:
        source = str(rng.choice(list(SOURCES), p=list(SOURCES.values())))
        while True:
            try:
                wanted = getattr(self, f"_{source}")(rng)
                if source in ("situation", "frame", "shared", "held") and rng.random() < SEVERAL:
                    self._several(wanted, rng)
                if wanted.tasks and rng.random() < UNTOUCHED and "{other}" not in wanted.say:
                    wanted.say = self._pick(rng, self.phrases.compound["untouched"]).replace("{}", wanted.say)
                return self._pair(wanted, source, rng)
            except Unsuitable:
                pass

    # -- what is wanted, and how it is said ----------------------------------------------------------------------

    def _pick(self, rng: np.random.Generator, phrases: Sequence[str]) -> str:
        kept = [phrase for phrase in phrases if is_held_out(phrase) == self.held_out]
        return str(rng.choice(kept or list(phrases)))

    def _sentence(self, rng: np.random.Generator) -> Wanted:
        kind = str(rng.choice(list(SLOTS)))
        say = self._pick(rng, self.phrases.tasks[kind]["sentences"])
        return Wanted([Task(kind, SLOTS[kind])], say)

    def _clause(self, rng: np.random.Generator) -> Wanted:
        kind = str(rng.choice(list(SLOTS)))
        clause = self._pick(rng, self.phrases.tasks[kind]["clauses"])
        say = str(rng.choice(POLITE)).format(clause) if rng.random() < 0.5 else clause
        return Wanted([Task(kind, SLOTS[kind])], say)

    def _wish(self, rng: np.random.Generator) -> Wanted:
        category = self.categories[str(rng.choice(list(self.categories)))]
        wanted = Wanted([Task("bring", ("object",))], self._pick(rng, category["wish"]))
        return self._one_of(wanted, "object", category, rng)

    def _situation(self, rng: np.random.Generator) -> Wanted:
        entry = _entry(self.phrases.situations, rng)
        tasks = [Task.parse(task) for task in entry["tasks"]]
        return Wanted(tasks, self._pick(rng, entry["say"]), absent={"sponge"} if entry.get("edible") else set())

    def _frame(self, rng: np.random.Generator) -> Wanted:
        """Clauses about different things, joined."""
        frames = self.phrases.compound["frames"]
        count = int(rng.choice([2, 3, 4, 5], p=[0.25, 0.35, 0.3, 0.1]))
        frame = self._pick(rng, [f for f in frames if _parts(f) == count])
        kinds = [str(kind) for kind in rng.choice([k for k in SLOTS if k not in OF_HELD], count)]
        if rng.random() < 0.15:
            kinds[0] = str(rng.choice(OF_HELD))
        for number, kind in enumerate(kinds[:-1]):
            if kind in ("hold", "hold_from") and rng.random() < 0.7:  # what is taken up is then done something with
                kinds[number : number + 2] = "hold", str(rng.choice([k for k in OF_HELD if k != "near_held"]))
            elif kind == "find" and rng.random() < 0.7:  # of little use in the middle of an errand
                kinds[number] = "bring"
        tasks, clauses = [], []
        for number, kind in enumerate(kinds, 1):
            names = tuple(f"{slot}{number}" for slot in SLOTS[kind])
            clause = self._pick(rng, self.phrases.tasks[kind]["clauses"])
            clauses.append(re.sub(r"\{(\w+)\}", rf"{{\g<1>{number}}}", clause))
            tasks.append(Task(kind, names))

        def fill(found: re.Match[str]) -> str:
            clause = clauses[int(found[1]) - 1]
            return clause[:1].upper() + clause[1:] if found[2] else clause

        return Wanted(tasks, re.sub(r"\{(\d)(:C)?\}", fill, frame))

    def _of_compound(self, section: str, rng: np.random.Generator) -> Wanted:
        entry = _entry(self.phrases.compound[section], rng)
        return Wanted([Task.parse(task) for task in entry["tasks"]], self._pick(rng, entry["say"]))

    def _shared(self, rng: np.random.Generator) -> Wanted:
        return self._of_compound("shared", rng)

    def _held(self, rng: np.random.Generator) -> Wanted:
        return self._of_compound("held", rng)

    def _swap(self, rng: np.random.Generator) -> Wanted:
        wanted = self._of_compound("swap", rng)
        (first, second) = wanted.tasks
        self._bind(wanted, rng)
        here, there = wanted.values[second.names[1]], wanted.values[first.names[1]]
        wanted.where |= {wanted.values[first.names[0]]: here, wanted.values[second.names[0]]: there}
        return wanted

    def _sets(self, rng: np.random.Generator) -> Wanted:
        """About all of a category, less one, or only those at one place."""
        wanted = self._of_compound("sets", rng)
        task, *rest = wanted.tasks
        names = list(task.names)
        at = str(rng.choice(WORKTOPS)) if "where" in names else ""
        to = [name for name in names if name.startswith(("place", "drawer"))]
        values = {name: str(rng.choice(DRAWERS if name.startswith("drawer") else WORKTOPS)) for name in to}
        if at in values.values():
            raise Unsuitable(at)
        of_a_kind = EVERYTHING not in names
        if not of_a_kind:
            present = [str(o) for o in rng.permutation(self.library.objects)[: rng.integers(1, 4)]]
            wanted.absent.update(self.library.objects)  # nothing else stands there: see _kitchen
            others = [str(o) for o in rng.permutation(self.library.objects) if o not in present][: rng.integers(1, 4)]
            wanted.where |= {o: str(rng.choice([w for w in WORKTOPS if w != at])) for o in others}
        else:
            wanted.words["all"], present = self._all_of_a_kind(wanted, (2, 4), rng)
        stays = ""
        if "except" in names:
            if of_a_kind and len(present) < 2:
                raise Unsuitable("except")
            stays = present.pop()
            wanted.values["except"] = stays
        elsewhere = [w for w in WORKTOPS if w not in (at, *values.values())]
        for number, thing in enumerate(present):
            outside = at and of_a_kind and number and rng.random() < 0.3
            wanted.where[str(thing)] = str(rng.choice(elsewhere)) if outside else at or str(rng.choice(elsewhere))
        if stays:
            wanted.where[stays] = at or str(rng.choice(elsewhere))
        if at:
            wanted.values["where"], wanted.words["where"] = at, f"on {self._place(at, rng)}"
            present = [o for o in present if wanted.where[str(o)] == at]
        wanted.values |= values
        tasks = []
        for number, thing in enumerate(present):
            wanted.values[f"member{number}"] = str(thing)
            tasks.append(Task(task.kind, (f"member{number}", *to)))
        wanted.tasks = [*tasks, *rest]
        return wanted

    def _several(self, wanted: Wanted, rng: np.random.Generator) -> None:
        """One thing of the errand becomes all of a kind."""
        names = [name for task in wanted.tasks for name in task.names]
        fitting = [i for i, t in enumerate(wanted.tasks) if t.kind in OF_SEVERAL and names.count(t.names[0]) == 1]
        if not fitting or wanted.absent:
            return
        at = fitting[rng.integers(len(fitting))]
        task = wanted.tasks[at]
        phrase, present = self._all_of_a_kind(wanted, (2, 3), rng)
        wanted.words[task.names[0]] = phrase
        wanted.values |= {f"member{number}": thing for number, thing in enumerate(present)}
        members = [Task(task.kind, (f"member{number}", *task.names[1:])) for number in range(len(present))]
        wanted.tasks[at : at + 1] = members

    def _all_of_a_kind(
        self, wanted: Wanted, between: tuple[int, int], rng: np.random.Generator
    ) -> tuple[str, list[str]]:
        """Words such as "both fruits", and those of the kind that are in the kitchen."""
        category = self.categories[str(rng.choice([n for n, e in self.categories.items() if e.get("all")]))]
        phrase, members = self._pick(rng, category["all"]), category["members"]
        two = bool(NUMBERS[2].search(phrase))
        count = 2 if two else int(rng.integers(between[0], between[1] + 1))
        present = [str(o) for o in rng.permutation(members)[:count]]
        if len(present) < 2 or (two and len(present) != 2):
            raise Unsuitable(phrase)
        wanted.absent.update(members)
        return phrase, present

    def _impossible(self, rng: np.random.Generator) -> Wanted:
        return Wanted([], self._pick(rng, self.phrases.impossible))

    # -- names -------------------------------------------------------------------------------------------------------

    def _one_of(self, wanted: Wanted, name: str, category: Mapping[str, Any], rng: np.random.Generator) -> Wanted:
        members = category["members"]
        chosen = str(rng.choice(members))
        wanted.values[name] = chosen
        if rng.random() < 0.6:  # no other that would do
            wanted.absent.update(m for m in members if m != chosen)
        return wanted

    def _noun(self, thing: str, rng: np.random.Generator, plain: float) -> str:
        entry = self.phrases.nouns["objects"][thing]
        luck = rng.random()
        if luck > plain and luck > (1 + plain) / 2:
            return self._pick(rng, entry["described"])
        name = thing if luck < plain else self._pick(rng, entry["names"])
        an = "an" if name[:1].lower() in "aeiou" else "a"
        return (
            f"{rng.choice(['the', an, 'my', 'that', 'this', ''], p=[0.7, 0.14, 0.05, 0.05, 0.03, 0.03])} {name}".strip()
        )

    def _place(self, place: str, rng: np.random.Generator) -> str:
        return f"the {place}" if rng.random() < 0.6 else self._pick(rng, self.phrases.nouns["places"][place])

    def _drawer(self, drawer: str, rng: np.random.Generator) -> str:
        return f"the {drawer} drawer" if rng.random() < 0.6 else self._pick(rng, self.phrases.nouns["drawers"][drawer])

    def _place_in(
        self, wanted: Wanted, place: str, objects: Sequence[str], used: set[str], rng: np.random.Generator
    ) -> str:
        """Now and then a worktop is called by what stands there."""
        free = [o for o in objects if o not in used and o not in wanted.where]
        if not wanted.tasks or place not in WORKTOPS or not free or rng.random() >= BY_NEIGHBOUR:
            return self._place(place, rng)
        used.add(other := str(rng.choice(free)))
        wanted.where[other] = place
        return self._pick(rng, self.phrases.compound["same place"]).format(other=self._noun(other, rng, 0.6))

    def _drawer_in(self, wanted: Wanted, drawer: str, rng: np.random.Generator) -> str:
        """Now and then a drawer is called open, as no other is; the robot sees which one."""
        others = {name for task in wanted.tasks for name in task.names if name.startswith("drawer")}
        if len(others) != 1 or rng.random() >= BY_OPENNESS or {"open", "close_all"} & {t.kind for t in wanted.tasks}:
            return self._drawer(drawer, rng)
        wanted.open, wanted.one_open = {drawer}, True
        return self._pick(rng, self.phrases.nouns["open drawer"])

    def _bind(self, wanted: Wanted, rng: np.random.Generator) -> None:
        """A value for every name of the tasks and slot of the sentence that has none yet, and words for all."""
        used = set(wanted.values.values())
        objects = [o for o in self.library.objects if o not in wanted.absent] or self.library.objects

        def fresh(options: Sequence[str]) -> str:
            left = [o for o in options if o not in used] or list(options)
            used.add(value := str(rng.choice(left)))
            return value

        for task in wanted.tasks:
            slots = dict(zip(SLOTS[task.kind], task.names, strict=True))
            if "target" in slots:
                self._bind_near(wanted, task, slots, used, rng)
            for slot, name in slots.items():
                if name not in wanted.values:
                    options = {"drawer": DRAWERS, "place": self._places(task.kind)}.get(slot, objects)
                    wanted.values[name] = fresh(options)
        for name in re.findall(r"\{(\w+)\}", wanted.say):
            if name not in wanted.values and name not in wanted.words:
                kind = "drawer" if name.startswith("drawer") else "place" if name.startswith("place") else "object"
                wanted.values[name] = fresh({"drawer": DRAWERS, "place": WORKTOPS}.get(kind, objects))
        plain = float(rng.choice([0.3, 0.6, 0.95]))
        for name, value in list(wanted.values.items()):
            if name in wanted.words or f"{{{name}}}" not in wanted.say:
                continue
            if name.startswith("drawer"):
                wanted.words[name] = self._drawer_in(wanted, value, rng)
            elif name.startswith("place"):
                wanted.words[name] = self._place_in(wanted, value, objects, used, rng)
            elif wanted.tasks and value not in wanted.where and rng.random() < 0.12:
                fitting = [e for e in self.categories.values() if value in e["members"] and e.get("one")]
                if not fitting:
                    raise Unsuitable(value)
                category = fitting[rng.integers(len(fitting))]
                one = self._pick(rng, category["one"])  # it is the only one there, so that "the" does, too
                wanted.words[name] = ARTICLE.sub("the ", one) if rng.random() < 0.4 else one
                wanted.absent.update(m for m in category["members"] if m not in wanted.values.values())
            else:
                wanted.words[name] = self._noun(value, rng, plain)
            if wanted.tasks and "{other}" not in wanted.say and wanted.say.count(f"{{{name}}}") == 1:
                self._waver(wanted, name, value, fresh, objects, rng)

    def _waver(
        self,
        wanted: Wanted,
        name: str,
        value: str,
        fresh: Callable[[Sequence[str]], str],
        objects: Sequence[str],
        rng: np.random.Generator,
    ) -> None:
        """Now and then what is said of one thing is corrected, or another would do as well."""
        luck, words = rng.random(), wanted.words[name]
        if luck > CORRECTED + EITHER or {"wrong", "other"} & wanted.words.keys():
            return
        options = DRAWERS if name.startswith("drawer") else WORKTOPS if name.startswith("place") else objects
        if luck < CORRECTED:
            wrong = str(rng.choice([o for o in options if o not in wanted.values.values()] or [""]))
            if wrong:
                said = self._noun(wrong, rng, 0.6) if options is objects else f"the {wrong}"
                said += " drawer" if options is DRAWERS else ""
                wanted.values["wrong"], wanted.words["wrong"] = wrong, said
                wanted.words[name] = self._pick(rng, self.phrases.compound["corrected"]).format(wrong=said, right=words)
        elif options is objects:
            wanted.values["other"] = fresh(objects)
            wanted.words["other"] = other = self._noun(wanted.values["other"], rng, 0.6)
            wanted.words[name] = self._pick(rng, self.phrases.compound["either"]).format(other=other, right=words)

    def _bind_near(
        self, wanted: Wanted, task: Task, slots: Mapping[str, str], used: set[str], rng: np.random.Generator
    ) -> None:
        """A pair that the library knows."""
        thing, target = wanted.values.get(slots.get("object", "held")), wanted.values.get(slots["target"])
        fitting = [
            (a, b)
            for a, b in self.pairs
            if (a == thing if thing else a not in used) and (b == target if target else b not in used)
        ]
        if not fitting:
            raise Unsuitable(task.kind)
        a, b = fitting[rng.integers(len(fitting))]
        wanted.values[slots.get("object", "held")], wanted.values[slots["target"]] = a, b
        used.update((a, b))

    def _places(self, kind: str) -> tuple[str, ...]:
        return (*WORKTOPS, TRASH) if kind == "go" else WORKTOPS

    # -- the kitchen -------------------------------------------------------------------------------------------------

    def _pair(self, wanted: Wanted, source: str, rng: np.random.Generator) -> Pair:
        self._bind(wanted, rng)
        kitchen = self._kitchen(wanted, rng)
        instruction = one_line(wanted.say.format(**wanted.words))
        if not wanted.tasks:
            return Pair(kitchen, _spoken(instruction, rng), (CANNOT,), source)
        scratch = SymbolicKitchen(dict(kitchen.where), kitchen.place, set(kitchen.open_drawers))
        expert = Expert(scratch, self.library)
        for task in wanted.tasks:
            expert.carry_out(task, wanted.values)
        if not expert.plan or len(expert.plan) > LONGEST_PLAN:
            raise Unsuitable("length")
        return Pair(kitchen, _spoken(instruction, rng), (*expert.plan, "done"), source)

    def _kitchen(self, wanted: Wanted, rng: np.random.Generator) -> SymbolicKitchen:
        """A kitchen in which the tasks make sense."""
        where, values = dict(wanted.where), wanted.values
        lifted = False  # something is in the hand from an earlier task on
        opened: set[str] = set()
        for number, task in enumerate(wanted.tasks):
            slots = dict(zip(SLOTS[task.kind], (values[name] for name in task.names), strict=True))
            thing, drawer = slots.get("object"), slots.get("drawer", "")
            if task.kind in OF_HELD and not lifted:
                held = values.get("held") or str(rng.choice([o for o in self.library.objects if o not in where]))
                if IN_HAND in where.values() or held in where:
                    raise Unsuitable("held")
                where[held] = IN_HAND
                lifted = task.kind == "near_held"
            if thing and thing not in where:
                if task.kind in INSIDE:
                    where[thing] = f"{drawer} drawer"
                else:
                    where[thing] = str(rng.choice([w for w in WORKTOPS if w != slots.get("place")]))
            elif thing and task.kind in INSIDE and number and where[thing] != f"{drawer} drawer":
                raise Unsuitable("inside")
            lifted = lifted or task.kind in ("hold", "hold_from")
            if drawer and drawer not in opened:
                opened.add(drawer)
                if task.kind == "close" or (task.kind != "open" and rng.random() < 0.35):
                    wanted.open.add(drawer)
        for name, value in values.items():  # things that are spoken of and left alone
            if value in self.library.objects and value not in where and name in wanted.words and rng.random() < 0.8:
                where[value] = str(rng.choice(WORKTOPS))
        if any(task.kind == "close_all" for task in wanted.tasks):
            self._leave_open(wanted, rng)
        elif rng.random() < 0.06 and not wanted.one_open:
            wanted.open.add(str(rng.choice([d for d in DRAWERS if d not in opened] or ["top"])))
        if IN_HAND not in where.values() and rng.random() < 0.2 and wanted.tasks:
            movable = [o for o, place in where.items() if place in WORKTOPS and o not in wanted.where]
            first = wanted.tasks[0].names[:1]
            thing = values.get(first[0], "") if first else ""
            if thing in movable and wanted.tasks[0].kind not in ("find", *INSIDE) and rng.random() < 0.6:
                where[thing] = IN_HAND
            else:
                where[str(rng.choice([o for o in self.library.objects if o not in where]))] = IN_HAND
        others = [str(o) for o in rng.permutation(self.library.objects) if o not in where and o not in wanted.absent]
        for other in others[: rng.integers(1, 7)]:
            where[other] = str(rng.choice(WORKTOPS))
        places = [
            p
            for p in (*WORKTOPS, OPERATOR)
            if not any(t.kind == "go" for t in wanted.tasks[:1]) or p not in values.values()
        ]
        order = rng.permutation(list(where))
        return SymbolicKitchen({str(o): where[str(o)] for o in order}, str(rng.choice(places)), set(wanted.open))

    def _leave_open(self, wanted: Wanted, rng: np.random.Generator) -> None:
        """As many drawers as the sentence says."""
        said = next((number for number, words in NUMBERS.items() if words.search(wanted.say)), 0)
        used = {wanted.values[name] for task in wanted.tasks for name in task.names if name.startswith("drawer")}
        if "open" in {task.kind for task in wanted.tasks} or (said and used):
            raise Unsuitable("drawers")
        wanted.open.update(str(d) for d in rng.permutation(DRAWERS)[: said or rng.integers(1, 4)])


def _entry(entries: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> Mapping[str, Any]:
    """One of them, as often as it has ways to say it."""
    ways = np.array([len(entry["say"]) for entry in entries])
    return entries[int(rng.choice(len(entries), p=ways / ways.sum()))]


def _parts(frame: str) -> int:
    return len(set(re.findall(r"\{(\d)", frame)))


def _spoken(text: str, rng: np.random.Generator) -> str:
    """With or without capitals and full stop, and with a slip now and then."""
    luck = rng.random()
    if luck < 0.3:
        text = text[:1].upper() + text[1:]
    elif luck < 0.5:
        text = text.lower()
    if rng.random() < 0.25 and text[-1:].isalnum():
        text += str(rng.choice([".", "!", ".", "?"])) if rng.random() < 0.5 else "."
    if rng.random() < 0.05 and len(text) > 12:
        at = int(rng.integers(1, len(text) - 2))
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text
