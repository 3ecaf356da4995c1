"""What is spoken of, and how it is called: a value for every name of an errand, and words for all that are said."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from saycan_qt.kitchen.language.errands import INSIDE, TRASH, Task, Unsuitable, Wanted
from saycan_qt.kitchen.language.phrases import Phrases
from saycan_qt.kitchen.symbolic import DRAWERS, WORKTOPS
from skills.library import SkillLibrary

ARTICLE = re.compile(r"^(an?|some|any) ")
SEVERAL = re.compile(r"^(?!.* of? ).*(chips|crisps|crackers)$")  # names for one thing that are plurals
ONE_OF_A_KIND = 0.12  # share of things that are called "a drink" and the like
CORRECTED, EITHER, BY_NEIGHBOUR, BY_OPENNESS = 0.05, 0.02, 0.06, 0.12  # of what may be said so


def a(name: str) -> str:
    """With the article of what was not spoken of before."""
    return f"{'some' if SEVERAL.search(name) else 'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


class Wording:
    """Finds values and words for what is wanted."""

    def __init__(self, library: SkillLibrary, phrases: Phrases) -> None:
        self.objects, self.phrases = library.objects, phrases
        self.pairs = [(s.arguments["object"], s.arguments["target"]) for s in library.families["move near"]]

    def bind(self, wanted: Wanted, rng: np.random.Generator) -> None:
        """A value for every name of the tasks and slot of the sentence that has none yet, and words for all."""
        binding = _Binding(self, wanted, rng)
        binding.find_values()
        binding.find_words()

    def noun(self, thing: str, plain: float, rng: np.random.Generator) -> str:
        """plain: how often by the name that the skills have for it."""
        entry = self.phrases.nouns["objects"][thing]
        luck = rng.random()
        if luck > plain and luck > (1 + plain) / 2:
            return self.phrases.pick(entry["described"], rng)
        name = thing if luck < plain else self.phrases.pick(entry["names"], rng)
        that, this = ("those", "these") if SEVERAL.search(name) else ("that", "this")
        ways = [f"the {name}", a(name), f"my {name}", f"{that} {name}", f"{this} {name}", name]
        return str(rng.choice(ways, p=[0.7, 0.14, 0.05, 0.05, 0.03, 0.03]))

    def place(self, place: str, rng: np.random.Generator) -> str:
        return f"the {place}" if rng.random() < 0.6 else self.phrases.pick(self.phrases.nouns["places"][place], rng)

    def drawer(self, drawer: str, rng: np.random.Generator) -> str:
        if rng.random() < 0.6:
            return f"the {drawer} drawer"
        return self.phrases.pick(self.phrases.nouns["drawers"][drawer], rng)


class _Binding:
    """Wording at work on one errand."""

    def __init__(self, wording: Wording, wanted: Wanted, rng: np.random.Generator) -> None:
        self.wording, self.phrases, self.wanted, self.rng = wording, wording.phrases, wanted, rng
        self.used = set(wanted.values.values())
        self.objects = [o for o in wording.objects if o not in wanted.absent] or wording.objects

    def options(self, name: str) -> Sequence[str]:
        """What a name such as drawer2 may stand for."""
        return DRAWERS if name.startswith("drawer") else WORKTOPS if name.startswith("place") else self.objects

    def fresh(self, options: Sequence[str]) -> str:
        """One that is not spoken of yet, if there is one."""
        left = [o for o in options if o not in self.used] or list(options)
        self.used.add(value := str(self.rng.choice(left)))
        return value

    # -- values ---------------------------------------------------------------------------------------------------

    def find_values(self) -> None:
        values = self.wanted.values
        for task in self.wanted.tasks:
            if "target" in task.slots:
                self.find_neighbours(task)
            for slot, name in task.slots.items():
                if name not in values:
                    going = slot == "place" and task.kind == "go"
                    values[name] = self.fresh((*WORKTOPS, TRASH) if going else self.options(slot))
        for name in re.findall(r"\{(\w+)\}", self.wanted.say):
            if name not in values and name not in self.wanted.words:
                values[name] = self.fresh(self.options(name))

    def find_neighbours(self, task: Task) -> None:
        """Two things of which the library knows how to move one near the other."""
        values, thing, target = self.wanted.values, task.slots.get("object", "held"), task.slots["target"]
        fitting = [
            (a, b)
            for a, b in self.wording.pairs
            if (a == values[thing] if values.get(thing) else a not in self.used)
            and (b == values[target] if values.get(target) else b not in self.used)
        ]
        if not fitting:
            raise Unsuitable(task.kind)
        values[thing], values[target] = pair = fitting[self.rng.integers(len(fitting))]
        self.used.update(pair)

    # -- words ----------------------------------------------------------------------------------------------------

    def find_words(self) -> None:
        wanted, plain = self.wanted, float(self.rng.choice([0.3, 0.6, 0.95]))
        inside = {t.names[0] for t in wanted.tasks if t.kind in INSIDE}  # nobody sees which things these are
        for name, value in list(wanted.values.items()):
            if name in wanted.words or f"{{{name}}}" not in wanted.say:
                continue
            if name.startswith("drawer"):
                wanted.words[name] = self.drawer(value)
            elif name.startswith("place"):
                wanted.words[name] = self.place(value)
            elif wanted.tasks and not (value in wanted.where or name in inside) and self.rng.random() < ONE_OF_A_KIND:
                wanted.words[name] = self.one_of_a_kind(value)
            else:
                wanted.words[name] = self.wording.noun(value, plain, self.rng)
            if wanted.tasks and "{other}" not in wanted.say and wanted.say.count(f"{{{name}}}") == 1:
                self.waver(name)

    def place(self, place: str) -> str:
        """Now and then a worktop is called by what stands there."""
        wanted, rng = self.wanted, self.rng
        free = [o for o in self.objects if o not in (*self.used, *wanted.where, *wanted.absent)]
        if not wanted.tasks or place not in WORKTOPS or not free or rng.random() >= BY_NEIGHBOUR:
            return self.wording.place(place, rng)
        self.used.add(other := str(rng.choice(free)))
        wanted.where[other], wanted.by_scene = place, True
        said = self.phrases.pick(self.phrases.compound["same place"], rng)
        return said.format(other=self.wording.noun(other, 0.6, rng))

    def drawer(self, drawer: str) -> str:
        """Now and then a drawer is called open, as no other is; the robot sees which one."""
        wanted, rng = self.wanted, self.rng
        others = {name for task in wanted.tasks for name in task.names if name.startswith("drawer")}
        if len(others) != 1 or rng.random() >= BY_OPENNESS or {"open", "close_all"} & {t.kind for t in wanted.tasks}:
            return self.wording.drawer(drawer, rng)
        wanted.open, wanted.one_open, wanted.by_scene = {drawer}, True, True
        return self.phrases.pick(self.phrases.nouns["open drawer"], rng)

    def one_of_a_kind(self, thing: str) -> str:
        wanted, rng = self.wanted, self.rng
        fitting = [e for e in self.phrases.categories.values() if thing in e["members"] and e.get("one")]
        if not fitting:
            raise Unsuitable(thing)
        category = fitting[rng.integers(len(fitting))]
        one = self.phrases.pick(category["one"], rng)  # it is the only one there, so that "the" does, too
        others = {m for m in self.phrases.taken_for(category) if m not in wanted.values.values()}
        if others & wanted.where.keys():
            raise Unsuitable(thing)
        wanted.absent |= others
        wanted.by_scene = True
        return ARTICLE.sub("the ", one) if rng.random() < 0.4 else one

    def waver(self, name: str) -> None:
        """Now and then what is said of one thing is corrected, or another would do as well."""
        wanted, rng, right = self.wanted, self.rng, self.wanted.words[name]
        luck = rng.random()
        if luck > CORRECTED + EITHER or {"wrong", "other"} & wanted.words.keys():
            return
        options = self.options(name)
        if luck < CORRECTED:
            wrong = str(rng.choice([o for o in options if o not in wanted.values.values()] or [""]))
            if wrong:
                said = self.wording.noun(wrong, 0.6, rng) if options is self.objects else f"the {wrong}"
                said += " drawer" if options is DRAWERS else ""
                wanted.values["wrong"], wanted.words["wrong"] = wrong, said
                corrected = self.phrases.pick(self.phrases.compound["corrected"], rng)
                wanted.words[name] = corrected.format(wrong=said, right=right)
        elif options is self.objects:
            wanted.values["other"] = self.fresh(self.objects)
            wanted.words["other"] = other = self.wording.noun(wanted.values["other"], 0.6, rng)
            either = self.phrases.pick(self.phrases.compound["either"], rng)
            wanted.words[name] = either.format(other=other, right=right)
