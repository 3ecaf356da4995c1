"""What an instruction is made from: a clause, several, a situation, a set of things; tasks, and a sentence for them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saycan_qt.kitchen.language.errands import OF_HELD, OF_SEVERAL, SLOTS, Task, Unsuitable, Wanted
from saycan_qt.kitchen.language.phrases import NUMBERS, Phrases
from saycan_qt.kitchen.language.wording import Wording
from saycan_qt.kitchen.symbolic import DRAWERS, WORKTOPS

SOURCES = {  # each is a method of Sources, or of Intricate, and how often it is drawn from
    "sentence": 0.05,
    "clause": 0.03,
    "wish": 0.04,
    "situation": 0.11,
    "frame": 0.09,
    "shared": 0.06,
    "held": 0.05,
    "sets": 0.06,
    "swap": 0.02,
    "impossible": 0.04,
    "count": 0.05,
    "condition": 0.08,
    "negation": 0.05,
    "correction": 0.04,
    "preference": 0.04,
    "order": 0.02,
    "pronoun": 0.04,
    "foreign": 0.03,
    "absent": 0.03,
    "unknown": 0.07,
}
INTRICATE = (
    *("count", "condition", "negation", "correction", "preference", "order", "pronoun"),
    *("foreign", "absent", "unknown"),
)
WRITTEN = "written"  # what comes whole from written.yaml
SEVERAL = 0.2  # share of errands in which one thing becomes a set of them
UNTOUCHED = 0.05  # share in which something else must be left alone
MEMBER = "member"  # how names of tasks begin that are of one of all of a kind
EVERYTHING = "everything"  # a task's name for all that stands somewhere
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


class Sources:
    """Draws what is wanted, and the sentence that says so, with `{name}` where things are called something."""

    def __init__(self, objects: Sequence[str], phrases: Phrases, wording: Wording) -> None:
        self.objects, self.phrases, self.wording = objects, phrases, wording

    def draw(self, source: str, rng: np.random.Generator) -> Wanted:
        """From one of SOURCES. Raises Unsuitable."""
        wanted: Wanted = getattr(self, source)(rng)
        if source in ("situation", "frame", "shared", "held") and rng.random() < SEVERAL:
            self._make_several(wanted, rng)
        if wanted.tasks and rng.random() < UNTOUCHED and "{other}" not in wanted.say:
            wanted.say = self.phrases.pick(self.phrases.compound["untouched"], rng).replace("{}", wanted.say)
        return wanted

    def sentence(self, rng: np.random.Generator) -> Wanted:
        kind = str(rng.choice(list(SLOTS)))
        say = self.phrases.pick(self.phrases.tasks[kind]["sentences"], rng)
        return Wanted([Task(kind, SLOTS[kind])], say)

    def clause(self, rng: np.random.Generator) -> Wanted:
        kind = str(rng.choice(list(SLOTS)))
        clause = self.phrases.pick(self.phrases.tasks[kind]["clauses"], rng)
        say = str(rng.choice(POLITE)).format(clause) if rng.random() < 0.5 else clause
        return Wanted([Task(kind, SLOTS[kind])], say)

    def wish(self, rng: np.random.Generator) -> Wanted:
        """For any one of a category."""
        category = self.phrases.categories[str(rng.choice(list(self.phrases.categories)))]
        wanted = Wanted([Task("bring", ("object",))], self.phrases.pick(category["wish"], rng))
        wanted.values["object"] = chosen = str(rng.choice(category["members"]))
        wanted.any_of, wanted.by_scene = category["members"], True
        if rng.random() < 0.6:  # no other that would do
            wanted.absent.update(m for m in self.phrases.taken_for(category) if m != chosen)
        return wanted

    def situation(self, rng: np.random.Generator) -> Wanted:
        entry = _entry(self.phrases.situations, rng)
        tasks = [Task.parse(task) for task in entry["tasks"]]
        return Wanted(tasks, self.phrases.pick(entry["say"], rng), absent={"sponge"} if entry.get("edible") else set())

    def frame(self, rng: np.random.Generator) -> Wanted:
        """Clauses about different things, joined."""
        frames = self.phrases.compound["frames"]
        count = int(rng.choice([2, 3, 4, 5], p=[0.25, 0.35, 0.3, 0.1]))
        frame = self.phrases.pick([f for f in frames if _parts(f) == count], rng)
        tasks, clauses = [], []
        for number, kind in enumerate(_kinds(count, rng), 1):
            names = tuple(f"{slot}{number}" for slot in SLOTS[kind])
            clause = self.phrases.pick(self.phrases.tasks[kind]["clauses"], rng)
            clauses.append(re.sub(r"\{(\w+)\}", rf"{{\g<1>{number}}}", clause))
            tasks.append(Task(kind, names))

        def fill(found: re.Match[str]) -> str:
            clause = clauses[int(found[1]) - 1]
            return clause[:1].upper() + clause[1:] if found[2] else clause

        return Wanted(tasks, re.sub(r"\{(\d)(:C)?\}", fill, frame))

    def shared(self, rng: np.random.Generator) -> Wanted:
        return self._of_compound("shared", rng)

    def held(self, rng: np.random.Generator) -> Wanted:
        return self._of_compound("held", rng)

    def swap(self, rng: np.random.Generator) -> Wanted:
        """Two things that stand where the other is to go."""
        wanted = self._of_compound("swap", rng)
        (first, second) = wanted.tasks
        self.wording.bind(wanted, rng)
        here, there = wanted.values[second.names[1]], wanted.values[first.names[1]]
        wanted.where |= {wanted.values[first.names[0]]: here, wanted.values[second.names[0]]: there}
        wanted.by_scene = True
        return wanted

    def sets(self, rng: np.random.Generator) -> Wanted:
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
        if of_a_kind:
            wanted.words["all"], present = self._all_of_a_kind(wanted, (2, 4), rng)
        else:
            present = self._all_there(wanted, at, rng)
        stays = ""
        if "except" in names:
            if of_a_kind and len(present) < 2:
                raise Unsuitable("except")
            wanted.values["except"] = stays = present.pop()
        elsewhere = [w for w in WORKTOPS if w not in (at, *values.values())]
        two = of_a_kind and bool(NUMBERS[2].search(wanted.words["all"]))
        for number, thing in enumerate(present):
            outside = at and of_a_kind and number and not two and rng.random() < 0.3
            wanted.where[thing] = str(rng.choice(elsewhere)) if outside else at or str(rng.choice(elsewhere))
        if stays:
            wanted.where[stays] = at or str(rng.choice(elsewhere))
        if at:
            wanted.values["where"], wanted.words["where"] = at, f"on {self.wording.place(at, rng)}"
            present = [thing for thing in present if wanted.where[thing] == at]
        wanted.values |= values
        wanted.tasks = [*_for_each(present, task.kind, to, wanted), *rest]
        return wanted

    def impossible(self, rng: np.random.Generator) -> Wanted:
        return Wanted([], self.phrases.pick(self.phrases.impossible, rng))

    # -- parts of them --------------------------------------------------------------------------------------------

    def _of_compound(self, section: str, rng: np.random.Generator) -> Wanted:
        entry = _entry(self.phrases.compound[section], rng)
        return Wanted([Task.parse(task) for task in entry["tasks"]], self.phrases.pick(entry["say"], rng))

    def _make_several(self, wanted: Wanted, rng: np.random.Generator) -> None:
        """One thing of the errand becomes all of a kind."""
        names = [name for task in wanted.tasks for name in task.names]
        fitting = [i for i, t in enumerate(wanted.tasks) if t.kind in OF_SEVERAL and names.count(t.names[0]) == 1]
        if not fitting or wanted.absent:
            return
        at = fitting[rng.integers(len(fitting))]
        task = wanted.tasks[at]
        wanted.words[task.names[0]], present = self._all_of_a_kind(wanted, (2, 3), rng)
        wanted.tasks[at : at + 1] = _for_each(present, task.kind, task.names[1:], wanted)

    def _all_of_a_kind(
        self, wanted: Wanted, between: tuple[int, int], rng: np.random.Generator
    ) -> tuple[str, list[str]]:
        """Words such as "both fruits", and those of the kind that are in the kitchen."""
        categories = self.phrases.categories
        category = categories[str(rng.choice([name for name, e in categories.items() if e.get("all")]))]
        phrase, members = self.phrases.pick(category["all"], rng), category["members"]
        two = bool(NUMBERS[2].search(phrase))
        count = 2 if two else int(rng.integers(between[0], between[1] + 1))
        present = [str(o) for o in rng.permutation(members)[:count]]
        if len(present) < 2 or (two and len(present) != 2):
            raise Unsuitable(phrase)
        wanted.absent.update(self.phrases.taken_for(category))
        return phrase, present

    def _all_there(self, wanted: Wanted, at: str, rng: np.random.Generator) -> list[str]:
        """All that stands at a worktop; others stand elsewhere."""
        present = [str(o) for o in rng.permutation(self.objects)[: rng.integers(1, 4)]]
        wanted.absent.update(self.objects)  # `kitchen_for` adds nothing
        others = [str(o) for o in rng.permutation(self.objects) if o not in present][: rng.integers(1, 4)]
        wanted.where |= {o: str(rng.choice([w for w in WORKTOPS if w != at])) for o in others}
        return present


def _for_each(things: Sequence[str], kind: str, to: Sequence[str], wanted: Wanted) -> list[Task]:
    """The task once for each of the things, which get names."""
    wanted.values |= {f"{MEMBER}{number}": thing for number, thing in enumerate(things)}
    wanted.by_scene = True
    return [Task(kind, (f"{MEMBER}{number}", *to)) for number in range(len(things))]


def in_order(wanted: Wanted, things: Sequence[str], at_hand: Sequence[str]) -> None:
    """Of all of a kind that comes first which stands first among these things, and where any will do, that is the first
    of those at hand: what is learnt is not left to chance."""
    names = [name for name in wanted.values if name.startswith(MEMBER)]
    members = sorted((wanted.values[name] for name in names), key=things.index)
    wanted.values |= dict(zip(names, members, strict=True))
    if wanted.any_of:
        spoken = {value for name, value in wanted.values.items() if name != "object"}  # as what to leave alone
        wanted.values["object"] = next(o for o in at_hand if o in wanted.any_of and o not in spoken)


def _entry(entries: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> Mapping[str, Any]:
    """One of them, as often as it has ways to say it."""
    ways = np.array([len(entry["say"]) for entry in entries])
    return entries[int(rng.choice(len(entries), p=ways / ways.sum()))]


def _parts(frame: str) -> int:
    return len(set(re.findall(r"\{(\d)", frame)))


def _kinds(count: int, rng: np.random.Generator) -> list[str]:
    """So many kinds of tasks that make sense one after the other."""
    kinds = [str(kind) for kind in rng.choice([k for k in SLOTS if k not in OF_HELD], count)]
    if rng.random() < 0.15:
        kinds[0] = str(rng.choice(OF_HELD))
    for number, kind in enumerate(kinds[:-1]):
        if kind in ("hold", "hold_from") and rng.random() < 0.7:  # what is taken up is then done something with
            kinds[number : number + 2] = "hold", str(rng.choice([k for k in OF_HELD if k != "near_held"]))
        elif kind == "find" and rng.random() < 0.7:  # of little use in the middle of an errand
            kinds[number] = "bring"
    return kinds
