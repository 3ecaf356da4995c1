"""A robot that does not exist: drawn from a domain, with a part of what can be done there, in words of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from planners.robot_language import abilities
from saycan_qt.made_up.domains import Act, Domain, frames
from skills.library import Skill, placeholders

MOST_SKILLS = 250
DONE = "done"
FLAT, MOST_FLAT = 0.15, 25  # share of small libraries without placeholders; skills of a small one
BARE = 0.25  # share of robots whose skills' texts have no articles
FIXED = (  # kinds that no robot carries
    *("surface", "star", "planet", "wall", "animal", "fish", "exhibit", "child", "actor", "server", "flight", "engine"),
    *("car", "vehicle", "panel", "bike", "machine", "scenery", "crop", "wagon", "cart"),
)
Action = tuple[str, tuple[str, ...]]  # a family of a robot's skills, and their arguments in the order of its slots
# Ways to handle things: which skills a robot has for it
HANDLING = {
    "": 0.27,
    "go": 0.14,
    "go pick down": 0.05,
    "go pick down hand": 0.05,
    "go pick put": 0.07,
    "go pick put hand": 0.05,
    "go pick put_it": 0.04,
    "pick put": 0.07,
    "pick put hand": 0.03,
    "pick put_it": 0.05,
    "move": 0.05,
    "move fetch": 0.03,
    "go fetch": 0.03,
    "find pick go down hand": 0.04,
    "find pick go put": 0.03,
}
WORDS = {
    "go": [
        "go to the {place}", "drive to the {place}", "move to the {place}", "navigate to the {place}", "go to {place}",
        "travel to the {place}", "roll to the {place}", "head for the {place}", "walk to the {place}",
    ],
    "pick": [
        "pick up the {thing}", "pick {thing}", "grasp the {thing}", "grab the {thing}", "take the {thing}",
        "lift the {thing}", "pick the {thing} up", "grip the {thing}", "pick up the {thing}",
    ],
    "put": [
        "put the {thing} on the {place}", "place the {thing} at the {place}", "put {thing} in {place}",
        "deliver the {thing} to the {place}", "set the {thing} down at the {place}", "place {thing} on {place}",
        "put the {thing} into the {place}", "drop the {thing} at the {place}",
    ],
    "put_it": [
        "put it on the {place}", "place it at the {place}", "release it at the {place}", "leave it at the {place}",
        "put it in the {place}", "drop it into the {place}",
    ],
    "down": ["put it down", "release it", "set it down", "open the gripper", "put down the {thing}", "let go"],
    "hand": [
        "hand it over", "give it to the user", "hand over the {thing}", "give it to the person", "bring it to you",
        "give the {thing} to the person", "hand the {thing} over",
    ],
    "move": [
        "move the {thing} to the {place}", "bring the {thing} to the {place}", "carry the {thing} to the {place}",
        "transport the {thing} to the {place}", "deliver the {thing} to the {place}", "take the {thing} to the {place}",
    ],
    "fetch": ["fetch the {thing}", "bring the {thing}", "bring me the {thing}", "bring the {thing} to the user"],
    "find": ["find the {thing}", "look for the {thing}", "go to the {thing}", "locate the {thing}", "find {thing}"],
    "open": ["open the {door}", "open the {door}", "open {door}"],
    "close": ["close the {door}", "shut the {door}", "close {door}"],
    "on": ["switch on the {device}", "turn on the {device}", "turn the {device} on", "start the {device}"],
    "off": ["switch off the {device}", "turn off the {device}", "turn the {device} off", "stop the {device}"],
}  # fmt: skip
SLOT_WORDS = {
    "thing": ["thing", "object", "item", "object"],
    "place": ["place", "place", "location", "room", "station", "spot"],
    "door": ["door", "door", "lid", "part"],
    "device": ["device", "device", "machine", "switch"],
}


@dataclass(frozen=True)
class Family:
    """Skills that differ in their arguments."""

    template: str  # of the text, with slots of the robot's own names
    slots: tuple[str, ...]  # what each argument is: a kind of thing, "thing", "place", "door", "device", "direction"
    values: tuple[tuple[str, ...], ...]  # all their arguments

    def text(self, arguments: Sequence[str]) -> str:
        names = placeholders(self.template)  # none where it is one skill of its own
        return self.template.format(**dict(zip(names, arguments, strict=True))) if names else self.template


@dataclass(frozen=True)
class Robot:
    """What it can do, and what is around it."""

    domain: Domain
    families: Mapping[str, Family]  # by what is done: a key of WORDS, or an act's text
    acts: tuple[Act, ...]  # those of the families that are not in WORDS
    directed: tuple[tuple[str, tuple[str, ...]], ...]  # of those, families with a direction, and ways to ask for them
    movable: tuple[str, ...]  # what it can carry
    places: tuple[str, ...]
    sees: bool  # does it know where things are?
    skills: tuple[Skill, ...] = field(default=(), repr=False)

    @property
    def head(self) -> str:
        return abilities(self.skills)

    def can(self, *families: str) -> bool:
        return all(family in self.families for family in families)

    def text(self, action: Action) -> str:
        family, arguments = action
        return self.families[family].text(arguments)

    def members(self, kind: str) -> tuple[str, ...]:
        """Of a kind of thing, those that some skill is about."""
        found = {value for f in self.families.values() for values in f.values for value in values}
        return tuple(thing for thing in self.domain.things.get(kind, ()) if thing in found)


def draw(domains: Sequence[Domain], rng: np.random.Generator) -> Robot:
    while True:
        robot = _Drawing(domains[int(rng.integers(len(domains)))], rng).robot()
        if 3 <= len(robot.skills) <= MOST_SKILLS:
            return robot


class _Drawing:
    def __init__(self, domain: Domain, rng: np.random.Generator) -> None:
        self.domain, self.rng = domain, rng
        self.names = {slot: str(rng.choice(words)) for slot, words in SLOT_WORDS.items()}
        self.families: dict[str, Family] = {}
        self.bare = rng.random() < BARE
        self.things = {kind: self._some(things, 2, 7) for kind, things in domain.things.items()}
        self.places = self._some(tuple(domain.places), 2, 6)

    def _some(self, things: Sequence[str], least: int, most: int) -> tuple[str, ...]:
        count = int(self.rng.integers(min(least, len(things)), min(most, len(things)) + 1))
        return tuple(str(thing) for thing in self.rng.permutation(things)[:count])

    def robot(self) -> Robot:
        rng, domain = self.rng, self.domain
        handling = str(rng.choice(list(HANDLING), p=list(HANDLING.values()))).split()
        kinds = self._some([kind for kind in domain.things if kind not in FIXED], 1, 3)
        handles = not {"pick", "move", "fetch"}.isdisjoint(handling)
        movable = tuple(thing for kind in kinds for thing in self.things[kind]) if handles else ()
        if len(kinds) == 1:
            self.names["thing"] = kinds[0].replace(" ", "_")
        for key in handling:
            self._handle(key, movable)
        doors = self._some(domain.doors, 1, 3) if rng.random() < 0.4 else ()
        for key in ("open", "close") if rng.random() < 0.85 else ("open",):
            self._add(key, str(rng.choice(WORDS[key])), ("door",), [(door,) for door in doors])
        switches = self._some(domain.switches, 1, 4) if rng.random() < 0.35 else ()
        style = int(rng.integers(len(WORDS["on"])))
        for key in ("on", "off"):
            self._add(key, WORDS[key][style], ("device",), [(switch,) for switch in switches])
        acts = self._acts(0 if handling or doors or switches else 2)
        directed = [self._direct(str(entry), movable) for entry in rng.choice(frames()["directed"], self._few(0.15))]
        skills = [
            Skill(text, key, text, dict(zip(placeholders(family.template), values, strict=False)))
            for key, family in self._shuffled()
            for values in family.values
            for text in [family.text(values)]
        ]
        skills = list({skill.name: skill for skill in skills}.values())
        if len(skills) < MOST_FLAT and rng.random() < FLAT:
            skills = [Skill(skill.text, skill.text) for skill in skills]
        return Robot(
            domain,
            self.families,
            tuple(acts),
            tuple(entry for entry in directed if entry),
            movable,
            self.places,
            sees=rng.random() < (0.65 if movable else 0.6 if "go" in handling else 0.25),
            skills=(*skills, Skill(DONE, DONE)),
        )

    def _few(self, share: float) -> int:
        return int(self.rng.random() < share)

    def _shuffled(self) -> list[tuple[str, Family]]:
        keys = list(self.families)
        return [(keys[i], self.families[keys[i]]) for i in self.rng.permutation(len(keys))]

    def _handle(self, key: str, movable: tuple[str, ...]) -> None:
        template = str(self.rng.choice(WORDS[key]))
        slots = tuple(placeholders(template))
        options = {"thing": movable, "place": self.places}
        self._add(key, template, slots, list(product(*(options[slot] for slot in slots))))

    def _add(self, key: str, template: str, slots: tuple[str, ...], values: list[tuple[str, ...]]) -> None:
        if not values:
            return
        template = re.sub(r"\bthe (?=\{)", "", template) if self.bare else template
        named = re.sub(r"\{(\w[\w ]*)\}", lambda f: f"{{{self.names.get(f[1], f[1]).replace(' ', '_')}}}", template)
        if len(values) == 1 and self.rng.random() < 0.5:  # a skill of its own
            literal = dict(zip(placeholders(named), values[0], strict=True))
            self.families[key] = Family(named.format(**literal), slots, tuple(values))
            return
        self.families[key] = Family(named, slots, tuple(values))

    def _acts(self, least: int) -> list[Act]:
        """A part of the domain's, and what they need."""
        rng, domain = self.rng, self.domain
        share = float(rng.choice([0.25, 0.5, 0.8]))
        chosen = [act for act in (*domain.acts, *domain.simple) if rng.random() < share]
        if len(chosen) < least:
            chosen = [domain.acts[int(i)] for i in rng.permutation(len(domain.acts))[: least + 1]]
        anywhere = [Act.parse(str(line)) for line in rng.permutation(frames()["anywhere"])[: rng.integers(0, 4)]]
        chosen += anywhere
        if "go" in self.families:
            seen = {act.text for act in chosen}
            places = [Act.parse(str(line)) for line in rng.permutation(frames()["at place"])[: rng.integers(0, 3)]]
            chosen += [act for act in places if act.text not in seen]
        by_text = {act.text: act for act in domain.simple}
        for act in list(chosen):
            if act.needs and rng.random() < 0.85 and by_text[act.needs] not in chosen:
                chosen.append(by_text[act.needs])
        for act in chosen:
            self._act(act)
        return [act for act in chosen if act.text in self.families]

    def _act(self, act: Act) -> None:
        texts = [way for way in act.ways if placeholders(way) == placeholders(act.text) and ", " not in way]
        template = texts[0] if self.rng.random() < 0.75 else str(self.rng.choice(texts))
        if not act.slot:
            self._add(act.text, template, (), [()])
            return
        words = {"place": self.places, "door": self.domain.doors, "switch": self.domain.switches}
        slots = tuple(placeholders(act.text))
        values = product(*(words.get(slot) or self.things[slot] for slot in slots))
        self._add(act.text, template, slots, list(values))

    def _direct(self, entry: str, movable: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
        template, _, rest = entry.partition(" = ")
        directions, *ways = rest.split(" | ")
        things = movable or self.things[str(self.rng.choice(list(self.things)))]
        slots = tuple(placeholders(template))
        options = {"thing": things, "direction": tuple(d.strip() for d in directions.split(","))}
        self._add(template, template, slots, list(product(*(options[slot] for slot in slots))))
        return template, tuple(ways)
