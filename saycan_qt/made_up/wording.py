"""How things are called, and how people speak: articles, other words, politeness, slips of the pen."""

from __future__ import annotations

import re

import numpy as np

from saycan_qt.made_up.domains import frames, plural
from saycan_qt.made_up.robots import Robot

NO_ARTICLE = re.compile(r"^(the|my|your) |^[A-Z]|( |^)(\d+|[A-Z]\d*|[A-Z])$")
IRREGULAR = {"foot": "feet"}
SLIPS = 0.1  # share of sentences with one
KEYS = {"a": "sq", "e": "wr", "i": "uo", "o": "ip", "u": "yi", "t": "ry", "n": "bm", "s": "ad", "r": "et", "l": "k"}


class Wording:
    """Words for what a robot knows. style: how often a thing has its own name, and an article."""

    def __init__(self, robot: Robot, rng: np.random.Generator) -> None:
        self.robot, self.rng = robot, rng
        self.plain = float(rng.choice([0.6, 0.85, 1.0]))
        self.terse = rng.random() < 0.12

    def name(self, thing: str) -> str:
        others = self.robot.domain.also.get(thing, ())
        return thing if not others or self.rng.random() < self.plain else str(self.rng.choice(others))

    def noun(self, thing: str) -> str:
        """With an article, or none."""
        name = self.name(thing)
        if NO_ARTICLE.search(name):
            return name
        luck = self.rng.random()
        if self.terse or luck > 0.97:
            return name
        return f"{'my' if luck > 0.95 else 'that' if luck > 0.93 else 'the'} {name}"

    def a(self, thing: str) -> str:
        name = self.name(thing)
        if NO_ARTICLE.search(name):
            return name
        return f"{'an' if name[0].lower() in 'aeio' else 'a'} {name}"

    def at(self, place: str) -> str:
        preposition = self.robot.domain.places.get(place, "at")
        luck = self.rng.random()
        if luck < 0.1:
            preposition = "at"
        return f"{preposition} {self.noun(place)}"

    def fill(self, frame: str, thing: str = "", place: str = "", slot: str = "") -> str:
        """A frame of `frames.yaml`, or an act's with `the {slot}`."""
        words: dict[str, str] = {}
        if slot:
            frame = filled(frame, slot, self.noun(thing))
        if thing:
            words |= {key: self.noun(thing) for key in ("t", "d", "s")}
        if place:
            words |= {"p": self.noun(place), "on": self.at(place)}
        return re.sub(r"\{(\w+)\}", lambda found: words.get(found[1], found[0]), frame)

    def kinds(self, kind: str) -> dict[str, str]:
        said = kind.replace("_", " ")
        return {"kind": said, "kinds": plural(said)}

    def spoken(self, text: str, plain: bool = False) -> str:
        """Politeness, capitals, a full stop, and slips now and then. plain: no words are added."""
        rng = self.rng
        text = tidy(text)
        if not plain:
            luck = rng.random()
            if luck < 0.25 and text[-1:] not in ".?!":
                text = str(rng.choice(frames()["polite"])).replace("{}", text)
            elif luck < 0.31:
                text = str(rng.choice(frames()["chatter"])).replace("{}", text)
        if self.terse:
            text = re.sub(r"\bthe ", "", text)
        luck = rng.random()
        if luck < 0.3:
            text = text[:1].upper() + text[1:]
        elif luck < 0.4:
            text = text.lower()
        if text[-1:].isalnum() and rng.random() < 0.25:
            text += str(rng.choice([".", ".", ".", "!"]))
        if rng.random() < SLIPS:
            for _ in range(int(rng.choice([1, 1, 2]))):
                text = slip(text, rng)
        return text


def filled(frame: str, slot: str, noun: str) -> str:
    """A noun in a slot, and in the place of the article before it."""
    return re.sub(rf"(?:\b(?:the|an?|some) )?\{{{slot}\}}", lambda _: noun, frame)


def tidy(text: str) -> str:
    """What comes of frames within frames."""
    text = re.sub(r"[.,;]+(?=[.?!;])|,(?=,)", "", " ".join(text.split()))
    text = re.sub(r" ([,.;?!])", r"\1", text)
    return text.strip(" ,;")


def slip(text: str, rng: np.random.Generator) -> str:
    """A letter swapped, left out, doubled, or its neighbour on the keyboard."""
    places = [i for i in range(1, len(text) - 1) if text[i].isalpha() and text[i - 1].isalpha()]
    if not places:
        return text
    at = places[int(rng.integers(len(places)))]
    match int(rng.integers(4)):
        case 0:
            return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
        case 1:
            return text[:at] + text[at + 1 :]
        case 2:
            return text[: at + 1] + text[at:]
        case _:
            return text[:at] + str(rng.choice(list(KEYS.get(text[at], text[at])))) + text[at + 1 :]
