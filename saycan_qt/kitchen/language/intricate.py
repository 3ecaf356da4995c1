"""Sentences that need the scene or a second reading: a kitchen is drawn first, then something that is said in it.

Counts, conditions, negations, corrections, order, pronouns, what people cannot have, other languages, and things that
are not there. Where several things would do, the plan takes those that come first in the scene's line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from saycan_qt.kitchen.language.errands import SLOTS, TRASH, Unsuitable
from saycan_qt.kitchen.language.phrases import Phrases
from saycan_qt.kitchen.language.wording import Wording, a
from saycan_qt.kitchen.symbolic import DRAWERS, IN_HAND, WORKTOPS, SymbolicKitchen
from skills.connective import OPERATOR

STRANGE = {"bring": 0.34, "trash": 0.2, "put": 0.14, "store": 0.14, "near": 0.06, "hold": 0.06, "find": 0.06}
KINDS = {  # of tasks, and how often they are asked for
    "bring": 0.36,
    "trash": 0.18,
    "put": 0.18,
    "store": 0.07,
    "store_close": 0.05,
    "hold": 0.05,
    "near": 0.04,
    "open": 0.03,
    "close": 0.02,
    "go": 0.02,
}
OF_ONE = {"bring": 0.6, "trash": 0.14, "put": 0.16, "store": 0.1}  # of a thing and nothing else that must be there
NUMBERS = ("no", "one", "two", "three", "four", "five")
NOTHING_FITS = 0.06  # share of wishes that nothing in the kitchen meets
THING = "thing"  # a category that holds everything
Texts = Mapping[str, str]


@dataclass
class Part:
    """One task of those that are spoken of."""

    kind: str  # of SLOTS
    values: dict[str, str]  # slot -> object, place or drawer
    words: dict[str, str]  # slot -> how it is called
    clause: str  # an imperative, with {slot}

    def said(self, **other: str) -> str:
        return self.clause.format(**(self.words | other))


@dataclass
class Asked:
    """A sentence in a kitchen."""

    kitchen: SymbolicKitchen
    say: str
    parts: list[Part] = field(default_factory=list)  # to be carried out in this order; none: to do nothing is right
    serves: bool = True  # else nothing that the robot can do does, or does what is left after these parts


def fill(template: str, texts: Texts) -> str:
    """{name} by its text, {name:C} with a capital."""

    def text(found: re.Match[str]) -> str:
        name, _, how = found[1].partition(":")
        said = texts[found[1]] if found[1] in texts else texts[name]
        return said[:1].upper() + said[1:] if how == "C" else said

    return re.sub(r"\{([^{}]+)\}", text, template)


def in_view(kitchen: SymbolicKitchen) -> list[str]:
    """Things on worktops, as the scene's line has them."""
    places = dict.fromkeys(kitchen.where.values())
    return [o for place in places if place in WORKTOPS for o, at in kitchen.where.items() if at == place]


class Intricate:
    """Draws a kitchen, and what is asked there."""

    def __init__(self, objects: Sequence[str], phrases: Phrases, wording: Wording) -> None:
        self.objects, self.phrases, self.wording = objects, phrases, wording
        self.said: dict[str, Any] = phrases.intricate

    def draw(self, source: str, rng: np.random.Generator) -> Asked:
        """Raises Unsuitable."""
        asked: Asked = getattr(self, source)(rng)
        return asked

    # -- how many -------------------------------------------------------------------------------------------------

    def count(self, rng: np.random.Generator) -> Asked:
        said = self.said["count"]
        category = str(rng.choice(list(self.said["many"])))
        many = self.pick(self.said["many"][category], rng)
        members = self.members(category)
        number, extra = (
            int(rng.choice([1, 2, 3, 4], p=[0.14, 0.46, 0.28, 0.12])),
            int(rng.choice([0, 1, 2, 3], p=[0.2, 0.35, 0.3, 0.15])),
        )
        if number + extra > len(members):
            raise Unsuitable("few")
        present = [str(o) for o in rng.permutation(members)[: number + extra]]
        kitchen = self.kitchen(rng, present, without=members, hand=False)
        texts = {"many": many, "n": self.number(number, rng), "people": NUMBERS[number]}
        luck, kind = rng.random(), self.kind(OF_ONE, rng)
        if luck < 0.1 and extra:
            return self._count_and_rest(kitchen, present, number, texts, rng)
        if luck < 0.15 and extra:
            return self._keep(kitchen, present, number, texts, rng)
        if luck < 0.18 and number + extra > 1:
            return self._double(kitchen, category, present, many, rng)
        if luck < 0.24:
            return self._two_counts(kitchen, category, present, number, texts, rng)
        things = [o for o in in_view(kitchen) if o in present]
        but_one = luck < 0.32 and len(things) > 1
        if but_one:
            number, that = len(things) - 1, fill(self.pick(said["all but one"], rng), texts)
        else:
            that = self._counted(said["single" if number == 1 and luck < 0.6 else "objects"], number, texts, rng)
        if rng.random() < 0.2:
            place = kitchen.where[things[0]]
            things = [o for o in things if kitchen.where[o] == place]
            that = fill(self.pick(said["at"], rng), {"that": that, "place": self.wording.place(place, rng)})
            number = len(things) - 1 if but_one else number
        if not 0 < number <= len(things):
            raise Unsuitable("few")
        parts = self.alike(kitchen, kind, things[:number], rng)
        if kind == "bring" and number > 1 and luck >= 0.32 and rng.random() < 0.35:
            return Asked(kitchen, fill(self.pick(said["sentences"], rng), texts | {"that": that}), parts)
        return Asked(kitchen, parts[0].said(object=that), parts)

    def _counted(self, ways: Sequence[str], number: int, texts: Texts, rng: np.random.Generator) -> str:
        """So many of them; "one drinks" is one of the drinks."""
        that = fill(self.pick(ways, rng), texts)
        n, many = texts["n"], texts["many"]
        return re.sub(rf"\b{n} (different |kinds of )?{many}", f"{n} of the {many}", that) if number == 1 else that

    def _count_and_rest(
        self, kitchen: SymbolicKitchen, present: list[str], number: int, texts: Texts, rng: np.random.Generator
    ) -> Asked:
        things = [o for o in in_view(kitchen) if o in present]
        free = [place for place in WORKTOPS if place not in {kitchen.where[o] for o in things}]
        if not free:
            raise Unsuitable("place")
        place = str(rng.choice(free))
        that = self._counted(self.said["count"]["objects"][:1], number, texts, rng)
        say = fill(
            self.pick(self.said["count"]["rest"], rng), {**texts, "that": that, "place": self.wording.place(place, rng)}
        )
        parts = self.alike(kitchen, "bring", things[:number], rng)
        return Asked(kitchen, say, parts + self.alike(kitchen, "put", things[number:], rng, place))

    def _keep(
        self, kitchen: SymbolicKitchen, present: list[str], number: int, texts: Texts, rng: np.random.Generator
    ) -> Asked:
        things = [o for o in in_view(kitchen) if o in present]
        parts = self.alike(
            kitchen, self.kind({"trash": 0.6, "bring": 0.2, "put": 0.2}, rng), things[: len(things) - number], rng
        )
        clause = parts[0].said(object=str(rng.choice(["the others", "the rest", "the other ones", "all the rest"])))
        return Asked(kitchen, fill(self.pick(self.said["count"]["keep"], rng), {**texts, "A": clause}), parts)

    def _double(
        self, kitchen: SymbolicKitchen, category: str, present: list[str], many: str, rng: np.random.Generator
    ) -> Asked:
        other = str(rng.choice([name for name in self.said["many"] if name != THING]))
        others = [o for o in in_view(kitchen) if o in self.members(other)]
        if category == THING or not others or set(self.members(other)) & set(self.members(category)):
            raise Unsuitable("overlap")
        first = [o for o in in_view(kitchen) if o in present][:2]
        parts = self.alike(kitchen, "bring", [*first, others[0]], rng)
        texts = {"many": many, "others": self.pick(self.said["many"][other], rng)}
        return Asked(kitchen, fill(self.pick(self.said["count"]["double"], rng), texts), parts)

    def _two_counts(
        self,
        kitchen: SymbolicKitchen,
        category: str,
        present: list[str],
        number: int,
        texts: Texts,
        rng: np.random.Generator,
    ) -> Asked:
        other = str(rng.choice(list(self.said["many"])))
        if THING in (category, other) or set(self.members(other)) & set(self.members(category)):
            raise Unsuitable("overlap")
        others = [o for o in in_view(kitchen) if o in self.members(other)]
        if not others:
            raise Unsuitable("few")
        second = int(rng.integers(1, min(2, len(others)) + 1))
        more = {"many": self.pick(self.said["many"][other], rng), "n": self.number(second, rng)}
        that, these = (f"{t['n']} {t['many']}" for t in (texts, more))
        if second == 1:
            these = self.one(other, rng)
        if number == 1:
            that = self.one(category, rng)
        parts = self.alike(kitchen, "bring", [o for o in in_view(kitchen) if o in present][:number], rng)
        parts += self.alike(kitchen, "bring", others[:second], rng)
        return Asked(kitchen, fill(self.pick(self.said["count"]["and"], rng), {"that": that, "these": these}), parts)

    # -- if ---------------------------------------------------------------------------------------------------------

    def condition(self, rng: np.random.Generator) -> Asked:
        if rng.random() < 0.2:
            return self._fallback(rng)
        kitchen, wanted = self.kitchen(rng), bool(rng.random() < 0.5)
        for _ in range(20):
            kind = str(rng.choice(list(self.said["conditions"])))
            texts, truth, about = self._state(kind, kitchen, rng)
            affirmed = bool(rng.random() < 0.65)
            if (truth is affirmed) is wanted:
                break
        else:
            raise Unsuitable("condition")
        luck, used = rng.random(), set(about.values())
        holds, asking = truth is affirmed, affirmed and rng.random() < 0.25
        said = fill(
            self.pick(self.said["conditions"][kind]["ask" if asking else "so" if affirmed else "not so"], rng), texts
        )
        frames, how = self.said["if"], "then" if luck < 0.45 else "unless" if luck < 0.58 and not asking else "else"
        first = None
        if how != "unless" and rng.random() < 0.65:
            first = self._about(kind, affirmed, kitchen, texts, about, rng)
        then, first_said = first or self._free(kitchen, rng, used)
        clauses = {"if": said, "A": first_said}
        parts = [then] if holds is (how != "unless") else []
        if how == "else":
            other, clauses["B"] = self._free(kitchen, rng, used | set(then.values.values()))
            parts = parts or [other]
        say = fill(self.pick(frames[f"ask {how}" if asking else how], rng), clauses)
        if rng.random() < 0.1:
            last, text = self._free(kitchen, rng, used | {v for part in (then, *parts) for v in part.values.values()})
            say, parts = fill(self.pick(frames["besides"], rng), {"0": say.rstrip("."), "C": text}), [*parts, last]
        return Asked(kitchen, say, parts)

    def _free(self, kitchen: SymbolicKitchen, rng: np.random.Generator, used: Collection[str]) -> tuple[Part, str]:
        part = self.part(kitchen, rng, used=used)
        return part, part.said()

    def _state(
        self, kind: str, kitchen: SymbolicKitchen, rng: np.random.Generator
    ) -> tuple[dict[str, str], bool, dict[str, str]]:
        """A condition's words, whether it holds, and what it is about by slots."""
        here, place = in_view(kitchen), str(rng.choice(WORKTOPS))
        texts = {"place": self.wording.place(place, rng)}
        if kind in ("thing at", "thing", "holding thing"):
            held = kitchen.held
            thing = str(rng.choice(here if rng.random() < 0.6 else [o for o in self.objects if o != held]))
            if kind == "holding thing" and held and rng.random() < 0.5:
                thing = held
            if kind == "thing at" and thing in here and rng.random() < 0.4:
                place = kitchen.where[thing]
                texts["place"] = self.wording.place(place, rng)
            texts |= {"thing": self.noun(thing, rng), "a thing": self.a(thing, rng), "bare": self.bare(thing, rng)}
            truths = {
                "thing at": kitchen.where.get(thing) == place,
                "thing": thing in here,
                "holding thing": thing == held,
            }
            about = {"object": thing, "place": place} if kind == "thing at" else {"object": thing}
            return texts, truths[kind], about
        if kind in ("some", "some at", "several"):
            category = str(rng.choice([name for name in self.said["many"] if name != THING]))
            if kitchen.held in self.members(category):
                raise Unsuitable("held")
            there = [
                o for o in here if o in self.members(category) and (kind != "some at" or kitchen.where[o] == place)
            ]
            texts |= {"one": self.one(category, rng), "many": self.pick(self.said["many"][category], rng)}
            thing = there[0] if there else str(rng.choice(self.members(category)))
            about = {"object": thing, "place": place} if kind == "some at" else {"object": thing}
            return texts, len(there) > (kind == "several"), about
        if kind == "together":
            if len(here) < 2:
                raise Unsuitable("few")
            thing, other = (str(o) for o in rng.permutation(here)[:2])
            texts |= {"thing": self.noun(thing, rng), "other": self.noun(other, rng), "to": kitchen.where[other]}
            return texts, kitchen.where[thing] == kitchen.where[other], {"object": thing, "target": other}
        if kind in ("open", "any open"):
            drawer = str(rng.choice(DRAWERS))
            truth = drawer in kitchen.open_drawers if kind == "open" else bool(kitchen.open_drawers)
            return (
                texts | {"drawer": self.wording.drawer(drawer, rng)},
                truth,
                {"drawer": drawer} if kind == "open" else {},
            )
        if kind == "empty":
            return texts, place not in kitchen.where.values(), {"place": place}
        return texts, bool(kitchen.held), {}

    def _about(
        self,
        kind: str,
        affirmed: bool,
        kitchen: SymbolicKitchen,
        texts: Texts,
        about: Mapping[str, str],
        rng: np.random.Generator,
    ) -> tuple[Part, str] | None:
        """What one does about it, and how that is said; None: nothing in particular."""
        it = str(rng.choice(["it", "it", "it", "that"]))
        if kind in ("thing at", "thing", "some", "some at") and affirmed:
            part = self.part(kitchen, rng, OF_ONE | {"hold": 0.08}, thing=about["object"])
            name = it if kind.startswith("thing") else str(rng.choice(["it", "one", "one of them", "that"]))
            return part, part.said(object=name if rng.random() < 0.75 else texts.get("thing", name))
        if kind == "thing at" and about["object"] in kitchen.where:
            part = self.part(kitchen, rng, {"put": 1.0}, thing=about["object"], place=about["place"], anyway=True)
            return part, part.said(object=it)
        if kind == "together":
            if affirmed:
                return None
            part = self.part(kitchen, rng, {"put": 1.0}, thing=about["object"], place=texts["to"], anyway=True)
            where = str(rng.choice(["there", "to the other one", f"to where {texts['other']} is"]))
            clause = str(rng.choice(["bring {object} {place}", "take {object} {place}", "carry {object} {place}"]))
            return replace(part, clause=clause), clause.format(object=it, place=where)
        if kind in ("open", "any open"):
            if kind == "any open" and affirmed:
                part = Part("close_all", {}, {}, self.pick(["close it", "shut it", "close whatever is open"], rng))
                return part, part.said()
            if kind == "open":
                part = self.part(
                    kitchen, rng, {"close" if affirmed else "open": 1.0}, drawer=about["drawer"], anyway=True
                )
                return part, part.said(drawer=it if rng.random() < 0.75 else part.words["drawer"])
        if kind.startswith("holding"):
            if affirmed:
                part = self.part(
                    kitchen, rng, {"release": 0.3, "give": 0.3, "trash_held": 0.2, "put_held": 0.2}, anyway=True
                )
                return part, part.said()
            if kind == "holding":
                part = self.part(kitchen, rng, {"hold": 1.0})
                return part, part.said()
        if kind == "empty" and affirmed:
            part = self.part(kitchen, rng, {"put": 1.0}, place=about["place"])
            return part, part.said()
        return None

    def _fallback(self, rng: np.random.Generator) -> Asked:
        kitchen = self.kitchen(rng, hand=False)
        here = in_view(kitchen)
        absent = [o for o in self.objects if o not in here]
        first = str(rng.choice(here if rng.random() < 0.45 else absent))
        second = str(rng.choice([o for o in here if o != first] or [""]))
        if not second:
            raise Unsuitable("few")
        part = self.part(kitchen, rng, OF_ONE, thing=first)
        other = self.same(kitchen, part, second, rng)
        a, b = self.noun(first, rng), self.noun(second, rng)
        texts = {"A": part.said(object=a), "A:it": part.said(object="it"), "B": part.said(object=b)}
        texts |= {"a": self.a(first, rng), "b": b, "bare a": self.bare(first, rng)}
        say = fill(self.pick(self.said["if"]["fallback"], rng), texts)
        return Asked(kitchen, say, [part if first in here else other])

    # -- not ----------------------------------------------------------------------------------------------------------

    def negation(self, rng: np.random.Generator) -> Asked:
        luck = rng.random()
        if luck < 0.45:
            return self._except(rng)
        kitchen, said = self.kitchen(rng), self.said["not"]
        if luck < 0.72:
            wrong, right = self.two(kitchen, rng)
            return Asked(kitchen, fill(self.pick(said["but"], rng), {"A": wrong[1], "B": right[1]}), [right[0]])
        if luck < 0.77:
            part, text = self._free(kitchen, rng, ())
            return Asked(kitchen, fill(self.pick(said["nothing"], rng), {"A": text}))
        if luck < 0.9:
            thing = str(rng.choice(in_view(kitchen)))
            part, text = self._free(kitchen, rng, {thing})
            texts = {"x": self.noun(thing, rng), "place": self.wording.place(kitchen.where[thing], rng), "B": text}
            return Asked(kitchen, fill(self.pick(said["leave"], rng), texts), [part])
        if luck < 0.95:
            part = self.part(kitchen, rng, {"store": 1.0})
            texts = {"thing": part.words["object"], "drawer": part.words["drawer"]}
            return Asked(kitchen, fill(self.pick(said["left open"], rng), texts), [part])
        one, other = (str(d) for d in rng.permutation(DRAWERS)[:2])
        kitchen.open_drawers = {one, other}
        part = self.part(kitchen, rng, {"close": 1.0}, drawer=one)
        texts = {"drawer": part.words["drawer"], "drawer2": self.wording.drawer(other, rng)}
        return Asked(kitchen, fill(self.pick(said["one of two drawers"], rng), texts), [part])

    def _except(self, rng: np.random.Generator) -> Asked:
        luck = rng.random()
        use = str(rng.choice(["eat", "drink"]))
        categories = [name for name in self.said["many"] if name not in (THING, "food or drink")]
        category = {"eat": "snack", "drink": "drink"}[use] if luck < 0.15 else str(rng.choice(categories))
        members = self.members(category)
        several = 2 if luck > 0.85 else 1
        not_these = [str(o) for o in rng.permutation(members)[:several]]
        rest = [o for o in members if o not in not_these]
        if not rest or len(not_these) < several:
            raise Unsuitable("few")
        present = [str(o) for o in rng.permutation(rest)[: rng.integers(1, 4)]]
        present += [o for o in not_these if rng.random() < 0.85]
        kitchen = self.kitchen(rng, present, without=members, hand=False)
        fitting = [o for o in in_view(kitchen) if o in rest]
        texts = {"one": self.one(category, rng), "use": use}
        for name, thing in zip(("x", "y"), not_these, strict=False):
            texts |= {name: self.noun(thing, rng), "bare" if name == "x" else "bare y": self.bare(thing, rng)}
        if luck < 0.15:
            part = self.part(kitchen, rng, {"bring": 1.0}, thing=fitting[0])
            return Asked(kitchen, fill(self.pick(self.said["except sentences"], rng), texts), [part])
        part = self.part(kitchen, rng, OF_ONE, thing=fitting[0])
        that = fill(self.pick(self.said["except two" if several > 1 else "except"], rng), texts)
        return Asked(kitchen, part.said(object=that), [part])

    def preference(self, rng: np.random.Generator) -> Asked:
        if rng.random() < 0.15:
            return self._rather(rng)
        about = self.said["avoid"][str(rng.choice(list(self.said["avoid"])))]
        category = str(rng.choice(about["among"]))
        members = self.members(category)
        has, fits = ([o for o in members if (o in about["has"]) is with_it] for with_it in (True, False))
        fits = [o for o in fits if o not in about["unsure"]]
        if not fits or not has:
            raise Unsuitable("members")
        serves = bool(rng.random() >= NOTHING_FITS)
        present = (
            [str(o) for o in rng.permutation(has)[: rng.integers(1, 4)]] if rng.random() < 0.95 or not serves else []
        )
        present += [str(o) for o in rng.permutation(fits)[: rng.integers(1, 3)]] if serves else []
        kitchen = self.kitchen(rng, present, without=members, hand=False)
        thing = next((o for o in in_view(kitchen) if o in fits), present[0])
        part = self.part(kitchen, rng, {"bring": 0.86, "put": 0.08, "hold": 0.06}, thing=thing)
        texts = {
            "why": self.pick(about["why"], rng),
            "one": self.one(category, rng),
            "said": self.pick(about["said"], rng),
        }
        here = [o for o in in_view(kitchen) if o in members]
        if (
            serves
            and part.kind == "bring"
            and 2 <= len(here) <= 4
            and sum(o in fits for o in here) == 1
            and rng.random() < 0.4
        ):
            *names, last = (self.noun(o, rng) for o in rng.permutation(here))
            texts["list"] = f"{', '.join(names)} and {last}"
            say = fill(self.pick(self.said["avoid among"], rng), texts)
        elif rng.random() < 0.3:
            say = part.said(object=fill(self.pick(self.said["avoid objects"], rng), texts))
        else:
            one = fill(self.pick(self.said["avoid objects"], rng), texts) if rng.random() < 0.15 else texts["one"]
            say = fill(self.pick(self.said["avoid sentences"], rng), texts | {"A": part.said(object=one)})
        return Asked(kitchen, say, [part] if serves else [], serves)

    def _rather(self, rng: np.random.Generator) -> Asked:
        names = [name for name in self.said["many"] if name != THING]
        large, small = (str(name) for name in rng.choice(names, 2, replace=False))
        members, better = self.members(large), self.members(small)
        if not set(better) < set(members):
            raise Unsuitable("subset")
        worse = [o for o in members if o not in better]
        present = [str(o) for o in rng.permutation(worse)[: rng.integers(1, 3)]]
        present += [str(o) for o in rng.permutation(better)[:1]] if rng.random() < 0.65 else []
        kitchen = self.kitchen(rng, present, without=members, hand=False)
        here = in_view(kitchen)
        thing = next((o for o in here if o in better), next(o for o in here if o in members))
        part = self.part(kitchen, rng, OF_ONE, thing=thing)
        that = fill(self.pick(self.said["rather"], rng), {"one": self.one(large, rng), "two": self.one(small, rng)})
        return Asked(kitchen, part.said(object=that), [part])

    # -- said twice ---------------------------------------------------------------------------------------------------

    def correction(self, rng: np.random.Generator) -> Asked:
        kitchen, luck, said = self.kitchen(rng), rng.random(), self.said["corrections"]
        if luck < 0.35:
            part = self.part(kitchen, rng)
            slot = str(rng.choice([s for s in part.values] or [""]))
            if not slot:
                raise Unsuitable("slots")
            options = self.objects if slot in ("object", "target") else DRAWERS if slot == "drawer" else WORKTOPS
            wrong = self.word(slot, str(rng.choice([o for o in options if o not in part.values.values()])), rng)
            texts = {"A": part.said(**{slot: wrong}), "wrong": wrong, "right": part.words[slot]}
            return Asked(kitchen, fill(self.pick(said["thing"], rng), texts), [part])
        if luck < 0.75:
            wrong_part, right = self.two(kitchen, rng)
            return Asked(kitchen, fill(self.pick(said["clause"], rng), {"A": wrong_part[1], "B": right[1]}), [right[0]])
        if luck < 0.84:
            return self._correct_list(kitchen, rng)
        first, second = self.several(kitchen, 2, rng)
        texts = {"A": first.said(), "B": second.said()}
        luck = 0.75 + (luck - 0.84) * 0.25 / 0.16
        how = "add" if luck < 0.84 else "drop first" if luck < 0.9 else "drop last" if luck < 0.96 else "drop all"
        parts = {"add": [first, second], "drop first": [second], "drop last": [first], "drop all": []}[how]
        return Asked(kitchen, fill(self.pick(said[how], rng), texts), parts)

    def _correct_list(self, kitchen: SymbolicKitchen, rng: np.random.Generator) -> Asked:
        """Of two things one is replaced, or struck out; or a single one stays, and something else is done."""
        said, here = self.said["corrections"], [str(o) for o in rng.permutation(in_view(kitchen))]
        if len(here) < 3:
            raise Unsuitable("few")
        first, second, third = here[:3]
        part = self.part(kitchen, rng, OF_ONE, thing=first)
        a, b = self.noun(first, rng), self.noun(second, rng)
        if rng.random() < 0.3:
            other, text = self._free(kitchen, rng, {first})
            return Asked(kitchen, fill(self.pick(said["keep"], rng), {"A": part.said(object=a), "B": text}), [other])
        listed = f"{a} and {b}" if rng.random() < 0.7 else f"both {a} and {b}"
        texts = {"A": part.said(object=listed), "a": a, "b": b, "right": self.noun(third, rng)}
        if rng.random() < 0.5:
            return Asked(kitchen, fill(self.pick(said["strike"], rng), texts), [part])
        return Asked(
            kitchen, fill(self.pick(said["replace"], rng), texts), [part, self.same(kitchen, part, third, rng)]
        )

    def _on_the_way(self, kitchen: SymbolicKitchen, rng: np.random.Generator) -> Asked:
        """To places before, or with the thing in hand."""
        said, thing = self.said["order"], self.choose(in_view(kitchen), rng)
        bring = self.part(kitchen, rng, {"bring": 1.0}, thing=thing)
        places = [str(p) for p in rng.permutation([p for p in (*WORKTOPS, TRASH) if p != kitchen.place])[:2]]
        visits = [
            Part("go", {"place": place}, {"place": self.word("place", place, rng)}, "go to {place}") for place in places
        ]
        texts = {"thing": bring.words["object"], "place": visits[0].words["place"], "place2": visits[1].words["place"]}
        if rng.random() < 0.5 and places[0] != kitchen.where[thing]:
            hold = replace(bring, kind="hold")
            return Asked(kitchen, fill(self.pick(said["past"], rng), texts), [hold, visits[0], bring])
        return Asked(kitchen, fill(self.pick(said["round"], rng), texts | {"A": bring.said()}), [*visits, bring])

    def order(self, rng: np.random.Generator) -> Asked:
        kitchen = self.kitchen(rng)
        if rng.random() < 0.15:
            return self._on_the_way(kitchen, rng)
        count = 2 if rng.random() < 0.6 else 3
        parts = self.several(kitchen, count, rng)
        texts = {str(number): part.said() for number, part in enumerate(parts, 1)}
        return Asked(kitchen, fill(self.pick(self.said["order"]["two" if count == 2 else "three"], rng), texts), parts)

    def pronoun(self, rng: np.random.Generator) -> Asked:
        said, kitchen = self.said["pronouns"], self.kitchen(rng)
        how = str(
            rng.choice(
                ["it", "first", "both", "same", "drawer", "there", "lift"], p=[0.3, 0.12, 0.14, 0.14, 0.12, 0.08, 0.1]
            )
        )
        here = [str(o) for o in rng.permutation(in_view(kitchen))]
        if len(here) < 2:
            raise Unsuitable("few")
        thing, other = here[:2]
        a, b = self.noun(thing, rng), self.noun(other, rng)
        texts = {"a": a, "b": b, "thing": a, "a thing": self.a(thing, rng)}
        texts["place"] = self.wording.place(kitchen.where[thing], rng)
        about_one = OF_ONE | {"hold": 0.05, "store_close": 0.05, "near": 0.12}
        parts: list[Part]
        match how:
            case "it":
                parts = [self.part(kitchen, rng, about_one, thing=thing)]
                texts["A"] = parts[0].said(object=str(rng.choice(["it", "it", "that"])))
            case "lift":
                parts = [
                    self.part(kitchen, rng, {"hold": 1.0}, thing=thing),
                    self.part(kitchen, rng, OF_ONE, thing=thing),
                ]
                texts["A"] = parts[1].said(object="it")
            case "first":
                last = bool(rng.random() < 0.5)
                parts = [self.part(kitchen, rng, OF_ONE, thing=other if last else thing)]
                names = ["the latter", "the second one", "the last one", "the second"]
                names = names if last else ["the former", "the first one", "the first", "the one I said first"]
                texts["A"] = parts[0].said(object=str(rng.choice(names)))
            case "both" | "same":
                first = self.part(kitchen, rng, OF_ONE, thing=thing)
                parts = [first, self.same(kitchen, first, other, rng)]
                both = str(rng.choice(["them", "both", "both of them", "the two of them", "them both"]))
                texts["A"] = first.said(object=both if how == "both" else a)
            case "drawer":
                closing = bool(rng.random() < 0.5)
                parts = [self.part(kitchen, rng, {"store_close" if closing else "store": 1.0}, thing=thing)]
                texts["drawer"] = parts[0].words["drawer"]
                texts["end"] = self.pick(said["close it"], rng) if closing else ""
            case _:
                first = self.part(kitchen, rng, {"put": 1.0}, thing=thing)
                place = first.values["place"]
                parts = [first, self.part(kitchen, rng, {"put": 1.0}, thing=other, place=place)]
                texts["place"] = first.words["place"]
        return Asked(kitchen, fill(self.pick(said[how], rng), texts), parts)

    # -- other languages, and what is not there -------------------------------------------------------------------

    def foreign(self, rng: np.random.Generator) -> Asked:
        """As people say it in another language."""
        language = self.phrases.foreign[str(rng.choice(list(self.phrases.foreign)))]
        kitchen, luck = self.kitchen(rng), rng.random()
        if luck < 0.12:
            category = str(rng.choice(list(language["wish"])))
            things = [o for o in in_view(kitchen) if o in self.members(category)]
            if not things or kitchen.held in self.members(category):
                raise Unsuitable("few or held")
            part = self.part(kitchen, rng, {"bring": 1.0}, thing=things[0])
            return Asked(kitchen, self.pick(language["wish"][category], rng), [part])
        kinds = {kind: 0.5 if kind == "bring_from" else KINDS.get(kind, 0.02) for kind in language["say"]}
        kinds["bring_from"] = 0.06
        count = 3 if luck > 0.9 else 2 if luck > 0.7 else 1
        parts = self.several(kitchen, count, rng, kinds)
        said = {str(number): self._in(kitchen, language, part, rng) for number, part in enumerate(parts, 1)}
        say = fill(self.pick({1: ["{1}"], 2: language["join"], 3: language["three"]}[count], rng), said)
        if count == 1 and parts[0].kind in ("bring_from", "store") and rng.random() < 0.4:
            drawer = parts[0].values["drawer"]
            parts.append(Part("close", {"drawer": drawer}, {}, ""))
            return Asked(kitchen, fill(self.pick(language["shut"], rng), {"1": say}), parts)
        if count == 1 and luck < 0.2 and parts[0].kind in OF_ONE:
            others = [o for o in in_view(kitchen) if o not in parts[0].values.values()]
            if others:
                x = self.pick(language["objects"][str(rng.choice(others))], rng)
                say = fill(self.pick(language["not"], rng), {"1": say, "x": x})
        return Asked(kitchen, self.pick(language["polite"], rng).format(say.rstrip(".。")), parts)

    def _in(self, kitchen: SymbolicKitchen, language: Mapping[str, Any], part: Part, rng: np.random.Generator) -> str:
        words = {s: self.pick(language["objects"][v], rng) for s, v in part.values.items() if s in ("object", "target")}
        standing = language["standing"].get(kitchen.where.get(part.values.get("object", "")))
        if standing and rng.random() < 0.2:
            words["object"] = standing.format(object=words["object"])
        if place := part.values.get("place"):
            words |= {"to": language["to"].get(place, ""), "go": language["go"].get(place, "")}
        if drawer := part.values.get("drawer"):
            words |= {name: language[name][drawer] for name in ("into", "drawer", "out")}
        return self.pick(language["say"][part.kind], rng).format(**words)

    def absent(self, rng: np.random.Generator) -> Asked:
        """Of one thing that is not there: the robot looks for it, and that is where the plan ends."""
        kitchen = self.kitchen(rng, hand=bool(rng.random() < 0.3))
        missing = str(rng.choice([o for o in self.objects if o not in kitchen.where]))
        gone = self.part(kitchen, rng, OF_ONE | {"hold": 0.05, "find": 0.05, "store_close": 0.05}, thing=missing)
        if rng.random() < 0.5:
            say = self.pick(self.phrases.tasks[gone.kind]["sentences"], rng).format(**gone.words)
            return Asked(kitchen, say if rng.random() < 0.5 else gone.said(), [gone])
        other, text = self._free(kitchen, rng, {missing})
        parts = [gone, other] if rng.random() < 0.4 else [other, gone]
        texts = {str(n): gone.said() if part is gone else text for n, part in enumerate(parts, 1)}
        return Asked(kitchen, fill(self._frame_of_two(rng), texts), parts)

    def unknown(self, rng: np.random.Generator) -> Asked:
        """Of a thing or a place that the robot does not know: what is asked before is done, and there the plan ends.
        Or one is only spoken of in passing."""
        kitchen, said, luck = self.kitchen(rng), self.phrases.unknown, rng.random()
        if luck < 0.25:
            part, text = self._free(kitchen, rng, ())
            return Asked(kitchen, fill(self.pick(said["passing"], rng), {"A": text, "u": self._strange(rng)}), [part])
        part = self.part(kitchen, rng, STRANGE)
        other = str(rng.choice([slot for slot in part.values if slot != "object"] or ["object"]))
        slot = other if rng.random() < 0.4 else "object"
        kinds = {"place": "places", "drawer": "containers"}
        words = part.words | {slot: self._of(kinds[slot], rng) if slot in kinds else self._strange(rng)}
        ways = self.phrases.tasks[part.kind]["sentences" if luck < 0.4 else "clauses"]
        text = self.pick(ways, rng).format(**words)
        if luck < 0.7:
            return Asked(kitchen, text, serves=False)
        first, before = self._free(kitchen, rng, set(part.values.values()))
        after = luck < 0.8  # what would come after is not done
        texts = [text, before] if after else [before, text]
        numbered = {str(number): one for number, one in enumerate(texts, 1)}
        return Asked(kitchen, fill(self._frame_of_two(rng), numbered), [] if after else [first], serves=False)

    def _frame_of_two(self, rng: np.random.Generator) -> str:
        frames = self.phrases.compound["frames"]
        return self.pick([frame for frame in frames if len(set(re.findall(r"\{(\d)", frame))) == 2], rng)

    def _strange(self, rng: np.random.Generator) -> str:
        """A thing that the robot does not know, as it is spoken of."""
        said, counted = self.phrases.unknown, rng.random() < 0.75
        name = self._of("things" if counted else "stuff", rng)
        name = f"{rng.choice(said['kinds'])} {name}" if rng.random() < 0.12 else name
        an = "an" if name[:1] in "aeiou" else "a"
        articles = ["the", an if counted else "some", "my", "that" if counted else "any", ""]
        article = str(rng.choice(articles, p=[0.5, 0.3, 0.1, 0.05, 0.05]))
        name = f"{article} {name}".strip()
        if rng.random() < 0.12:
            at = self.wording.place(str(rng.choice(WORKTOPS)), rng)
            name = fill(self.pick(said["located"], rng), {"u": name, "at": at})
        return name

    def _of(self, which: str, rng: np.random.Generator) -> str:
        """One of the unknown."""
        return self.pick([one for row in self.phrases.unknown[which] for one in row], rng)

    # -- parts of them ------------------------------------------------------------------------------------------------

    def kitchen(
        self,
        rng: np.random.Generator,
        needed: Sequence[str] = (),
        without: Collection[str] = (),
        hand: bool = True,  # may it hold something?
    ) -> SymbolicKitchen:
        others = [str(o) for o in rng.permutation(self.objects) if o not in needed and o not in without]
        count = rng.integers(1, 6) if needed else rng.integers(3, 9)
        where = {o: str(rng.choice(WORKTOPS)) for o in (*needed, *others[:count])}
        if hand and rng.random() < 0.15:
            where[others[count]] = IN_HAND
        opened = {d for d in DRAWERS if rng.random() < 0.2}
        order = rng.permutation(list(where))
        return SymbolicKitchen({str(o): where[str(o)] for o in order}, str(rng.choice([*WORKTOPS, OPERATOR])), opened)

    def part(
        self,
        kitchen: SymbolicKitchen,
        rng: np.random.Generator,
        kinds: Mapping[str, float] = KINDS,
        used: Collection[str] = (),
        thing: str = "",
        place: str = "",
        drawer: str = "",
        anyway: bool = False,  # even what is so already
    ) -> Part:
        """A task that makes sense here, about things that are not used yet."""
        kind, values = self.kind(kinds, rng), dict[str, str]()
        free = [o for o in in_view(kitchen) if o not in used]
        given = {"place": place, "drawer": drawer}
        for slot in SLOTS[kind]:
            match slot:
                case "object":
                    values[slot] = thing or self.choose(free, rng)
                case "target":
                    fitting = [b for a, b in self.wording.pairs if a == values["object"] and b in free]
                    values[slot] = self.choose(fitting, rng)
                case "place":
                    at = kitchen.where.get(values.get("object", ""), kitchen.place if kind == "go" else "")
                    places = (*WORKTOPS, TRASH) if kind == "go" else WORKTOPS
                    values[slot] = given[slot] or self.choose([p for p in places if p != at and p not in used], rng)
                    if values[slot] == at and not anyway:
                        raise Unsuitable("there")
                case "drawer":
                    open_ones = kitchen.open_drawers
                    options = [d for d in DRAWERS if d not in used and (d in open_ones) is (kind == "close")]
                    if kind not in ("open", "close"):
                        options = [d for d in DRAWERS if d not in used]
                    values[slot] = given[slot] or self.choose(options, rng)
        if kind.endswith("_from") and values["object"] in kitchen.where:  # it lies in there
            kitchen.where[values["object"]] = f"{values['drawer']} drawer"
        words = {slot: self.word(slot, value, rng) for slot, value in values.items()}
        return Part(kind, values, words, self.pick(self.phrases.tasks[kind]["clauses"], rng))

    def several(
        self, kitchen: SymbolicKitchen, count: int, rng: np.random.Generator, kinds: Mapping[str, float] = KINDS
    ) -> list[Part]:
        """About different things."""
        parts: list[Part] = []
        for _ in range(count):
            parts.append(self.part(kitchen, rng, kinds, {v for part in parts for v in part.values.values()}))
        return parts

    def two(self, kitchen: SymbolicKitchen, rng: np.random.Generator) -> tuple[tuple[Part, str], tuple[Part, str]]:
        """Two tasks of which only the second is meant, with how they are said: often about the same thing, or of the
        same kind."""
        wrong, luck = self.part(kitchen, rng), rng.random()
        if luck < 0.45 and wrong.values.get("object") and wrong.kind in (*OF_ONE, "store_close", "hold"):
            kinds = {kind: share for kind, share in OF_ONE.items() if kind != wrong.kind}
            right = self.part(kitchen, rng, kinds, thing=wrong.values["object"])
            it = "it" if rng.random() < 0.75 else wrong.words["object"]
            return (wrong, wrong.said()), (right, right.said(object=it))
        kinds = {wrong.kind: 1.0} if luck < 0.75 and wrong.kind in OF_ONE else KINDS
        right = self.part(kitchen, rng, kinds, set(wrong.values.values()))
        return (wrong, wrong.said()), (right, right.said())

    def alike(
        self, kitchen: SymbolicKitchen, kind: str, things: Sequence[str], rng: np.random.Generator, place: str = ""
    ) -> list[Part]:
        """The same for each of these things."""
        first = self.part(kitchen, rng, {kind: 1.0}, thing=things[0], place=place)
        return [first, *(self.same(kitchen, first, thing, rng) for thing in things[1:])]

    def same(self, kitchen: SymbolicKitchen, part: Part, thing: str, rng: np.random.Generator) -> Part:
        """As this one, about another thing."""
        place, drawer = part.values.get("place", ""), part.values.get("drawer", "")
        return self.part(kitchen, rng, {part.kind: 1.0}, thing=thing, place=place, drawer=drawer)

    def pick(self, ways: Sequence[str], rng: np.random.Generator) -> str:
        return self.phrases.pick(ways, rng)

    def kind(self, kinds: Mapping[str, float], rng: np.random.Generator) -> str:
        shares = np.array(list(kinds.values()))
        return str(rng.choice(list(kinds), p=shares / shares.sum()))

    def choose(self, options: Sequence[str], rng: np.random.Generator) -> str:
        if not options:
            raise Unsuitable("options")
        return str(rng.choice(list(options)))

    def members(self, category: str) -> list[str]:
        return list(self.objects) if category == THING else self.phrases.categories[category]["members"]

    def one(self, category: str, rng: np.random.Generator) -> str:
        return "one thing" if category == THING else self.pick(self.phrases.categories[category]["one"], rng)

    def number(self, number: int, rng: np.random.Generator) -> str:
        return str(number) if rng.random() < 0.25 else NUMBERS[number]

    def word(self, slot: str, value: str, rng: np.random.Generator) -> str:
        match slot:
            case "drawer":
                return self.wording.drawer(value, rng)
            case "place":
                return self.wording.place(value, rng)
        return self.noun(value, rng)

    def noun(self, thing: str, rng: np.random.Generator) -> str:
        return self.wording.noun(thing, float(rng.choice([0.4, 0.7, 0.95])), rng)

    def bare(self, thing: str, rng: np.random.Generator) -> str:
        """Without an article."""
        return thing if rng.random() < 0.6 else self.pick(self.phrases.nouns["objects"][thing]["names"], rng)

    def a(self, thing: str, rng: np.random.Generator) -> str:
        return a(self.bare(thing, rng))
