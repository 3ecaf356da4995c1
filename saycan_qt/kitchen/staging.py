"""A MuJoCo kitchen in the state of a symbolic one: what a robot would see if every skill so far had been perfect."""

from __future__ import annotations

import numpy as np

from saycan_qt.kitchen.scene import TRAY, WORKTOPS
from saycan_qt.kitchen.symbolic import IN_HAND, SymbolicKitchen
from saycan_qt.kitchen.tasks import AREA_HIGH, AREA_LOW, NEAR, inside_drawer
from saycan_qt.kitchen.world import Placement, Scene, World
from skills.connective import OPERATOR

TRASH = "trash can"
APART = NEAR + 0.005  # so that nothing is near another by chance [m]
BESIDE = 0.13  # from an object to the one that it was moved near [m]
OPENING = (0.19, 0.25)  # of an open drawer [m]
BETWEEN = ((0.09, 0.065), (0.09, -0.065), (0.31, 0.065), (0.31, -0.065))  # where the operator gets more than three [m]
IN_TRASH = ((0.12, -0.08), (0.28, 0.08))  # lowest and highest x, y of what is dropped into the trash can [m]
FALL = 150  # [physics steps] until what was thrown away lies still


class Stage:
    """Follows one symbolic kitchen: what has moved there gets a spot, all else stays where it was."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self._placed: dict[str, Placement] = {}
        self._where: dict[str, str] = {}  # as it was when the object was placed
        self._near: set[tuple[str, str]] = set()
        self._openings: dict[str, float] = {}  # of open drawers [m]

    def world(self, kitchen: SymbolicKitchen) -> World:
        world = World(self.scene(kitchen))
        if TRASH in kitchen.where.values():
            world.rest(FALL)
        return world

    def scene(self, kitchen: SymbolicKitchen) -> Scene:
        drawn = {drawer: float(self.rng.uniform(*OPENING)) for drawer in sorted(kitchen.open_drawers)}
        self._openings = {drawer: self._openings.get(drawer, opening) for drawer, opening in drawn.items()}
        targets = dict(sorted(kitchen.near - self._near))
        moved = [n for n, place in kitchen.where.items() if self._where.get(n) != place or n in targets]
        for name in moved:
            self._placed.pop(name, None)
        for name in moved:
            self._placed[name] = self._spot(kitchen, name, targets.get(name, ""))
        self._where, self._near = dict(kitchen.where), set(kitchen.near)
        objects = {name: self._placed[name] for name in kitchen.where}
        return Scene(objects, kitchen.place, dict(self._openings), held=kitchen.held)

    def _spot(self, kitchen: SymbolicKitchen, name: str, target: str) -> Placement:
        place, rng, held = kitchen.where[name], self.rng, kitchen.held
        if place == IN_HAND:
            return Placement(kitchen.place, 0.2, 0.0)
        if place.endswith(" drawer"):
            drawer = place.removesuffix(" drawer")
            opening = self._openings.get(drawer, OPENING[0])
            spots = np.array([[inside_drawer(drawer, opening) + opening, y] for y in (0.0, 0.1, -0.1)])
            return self._choose("far counter", spots, 0.09, rng.uniform(-0.3, 0.3), (held,), drawer)
        if target:
            beside, angles = self._placed[target], rng.permutation(np.linspace(0, 2 * np.pi, 24, endpoint=False))
            spots = np.array([beside.x, beside.y]) + BESIDE * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            spots = spots[((spots >= AREA_LOW) & (spots <= AREA_HIGH)).all(axis=1)]
        elif place in WORKTOPS:
            spots = rng.uniform(AREA_LOW, AREA_HIGH, (300, 2))
        elif place == OPERATOR:
            spots = np.array(TRAY + BETWEEN)
        else:
            spots = rng.uniform(*IN_TRASH, (50, 2))
        return self._choose(place, spots, APART, rng.uniform(-np.pi / 2, np.pi / 2), (held, target))

    def _choose(
        self, place: str, spots: np.ndarray, room: float, yaw: float, ignored: tuple[str, ...], drawer: str = ""
    ) -> Placement:
        """The first of the spots with so much room to all that rests there but `ignored` [m], else that with most."""
        others = [p for n, p in self._placed.items() if n not in ignored]
        taken = [np.array([p.x, p.y]) for p in others if (p.place, p.drawer) == (place, drawer)]
        found = [min((float(np.linalg.norm(spot - other)) for other in taken), default=1.0) for spot in spots]
        x, y = spots[int(np.argmax(np.minimum(found, room)))]
        return Placement(place, float(x), float(y), float(yaw), drawer)
