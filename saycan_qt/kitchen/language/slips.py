"""Slips of the finger, as people make them: for training, and to measure what a sentence is still worth with one."""

from __future__ import annotations

import re

import numpy as np

KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # beside one another


def with_a_slip(text: str, rng: np.random.Generator) -> str:
    """Two letters changed over, or one left out, written twice, or its key's neighbour in its place; a sentence without
    two letters in a row stays as it is."""
    places = [found.start() for found in re.finditer(r"(?=[a-zA-Z]{2})", text)]
    if not places:
        return text
    at = int(rng.choice(places))
    letter, following = text[at], text[at + 1]
    match rng.integers(4):
        case 0 if letter != following:
            slip = following + letter
        case 1:
            slip = letter
        case 0 | 2:
            slip = letter + following * 2
        case _:
            row = next(keys for keys in KEYS if following.lower() in keys)
            near = row.index(following.lower())
            slip = letter + str(rng.choice([*row[max(0, near - 1) : near], *row[near + 1 : near + 2]]))
    return text[:at] + slip + text[at + 2 :]
