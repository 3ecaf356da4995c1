"""A kitchen in which the tasks of an errand make sense."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saycan_qt.kitchen.language.errands import INSIDE, OF_HELD, Unsuitable, Wanted
from saycan_qt.kitchen.language.phrases import NUMBERS
from saycan_qt.kitchen.symbolic import DRAWERS, IN_HAND, WORKTOPS, SymbolicKitchen
from skills.connective import OPERATOR


def kitchen_for(wanted: Wanted, objects: Sequence[str], rng: np.random.Generator) -> SymbolicKitchen:
    """Beside what the errand needs it has a few other objects, a robot somewhere, and now and then a drawer open or
    something in the hand that is in the way. Raises Unsuitable where the tasks contradict each other."""
    where = _where_tasks_need_things(wanted, objects, rng)
    for name, value in wanted.values.items():  # things that are spoken of and left alone
        if value in objects and value not in where and name in wanted.words and rng.random() < 0.8:
            where[value] = str(rng.choice(WORKTOPS))
    _open_drawers(wanted, rng)
    filled = IN_HAND not in where.values() and rng.random() < 0.2 and wanted.tasks
    if filled and (held := _in_hand(wanted, where, objects, rng)):
        where[held] = IN_HAND
    others = [str(o) for o in rng.permutation(objects) if o not in where and o not in wanted.absent]
    for other in others[: rng.integers(1, 7)]:
        where[other] = str(rng.choice(WORKTOPS))
    going = any(task.kind == "go" for task in wanted.tasks[:1])
    places = [p for p in (*WORKTOPS, OPERATOR) if not going or p not in wanted.values.values()]
    order = rng.permutation(list(where))
    return SymbolicKitchen({str(o): where[str(o)] for o in order}, str(rng.choice(places)), set(wanted.open))


def _where_tasks_need_things(wanted: Wanted, objects: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    """Object -> place, and in `wanted.open` drawers that a task may find open."""
    where, values = dict(wanted.where), wanted.values
    lifted = False  # something is in the hand from an earlier task on
    touched = set[str]()  # drawers
    for number, task in enumerate(wanted.tasks):
        slots = {slot: values[name] for slot, name in task.slots.items()}
        thing, drawer = slots.get("object"), slots.get("drawer", "")
        if task.kind in OF_HELD and not lifted:
            held = values.get("held") or _unspoken(wanted, where, objects, rng)
            if not held or IN_HAND in where.values() or held in where:
                raise Unsuitable("held")
            where[held] = IN_HAND
            wanted.by_scene |= task.kind in ("near_held", "store_held")  # whose plans name what is held
            lifted = task.kind == "near_held"
        if thing and thing not in where:
            if task.kind in INSIDE:
                where[thing] = f"{drawer} drawer"
            else:
                where[thing] = str(rng.choice([w for w in WORKTOPS if w != slots.get("place")]))
        elif thing and task.kind in INSIDE and number and where[thing] != f"{drawer} drawer":
            raise Unsuitable("inside")
        lifted = lifted or task.kind in ("hold", "hold_from")
        if drawer and drawer not in touched:
            touched.add(drawer)
            if task.kind == "close" or (task.kind != "open" and rng.random() < 0.35):
                wanted.open.add(drawer)
    return where


def _open_drawers(wanted: Wanted, rng: np.random.Generator) -> None:
    """To close all, as many as the sentence says; else now and then one that no task is about."""
    kinds = {task.kind for task in wanted.tasks}
    if "close_all" in kinds:
        said = next((number for number, words in NUMBERS.items() if words.search(wanted.say)), 0)
        named = any(name.startswith("drawer") for task in wanted.tasks for name in task.names)
        if "open" in kinds or (said and named):
            raise Unsuitable("drawers")
        wanted.by_scene = True
        wanted.open.update(str(d) for d in rng.permutation(DRAWERS)[: said or rng.integers(1, 4)])
    elif rng.random() < 0.06 and not wanted.one_open:
        touched = {wanted.values[task.slots["drawer"]] for task in wanted.tasks if "drawer" in task.slots}
        wanted.open.add(str(rng.choice([d for d in DRAWERS if d not in touched] or ["top"])))


def _in_hand(wanted: Wanted, where: dict[str, str], objects: Sequence[str], rng: np.random.Generator) -> str:
    """What the robot already holds, or what it must put down first; "" where it can be nothing."""
    movable = [o for o, place in where.items() if place in WORKTOPS and o not in wanted.where]
    first = wanted.tasks[0]
    thing = wanted.values.get(first.names[0], "") if first.names else ""
    if thing in movable and first.kind not in ("find", *INSIDE) and rng.random() < 0.6:
        return thing
    return _unspoken(wanted, where, objects, rng)


def _unspoken(wanted: Wanted, where: dict[str, str], objects: Sequence[str], rng: np.random.Generator) -> str:
    """A thing that is not there yet and that no words are about, as "the other snacks" are about all of them; or ""."""
    taken = {*where, *wanted.absent, *wanted.values.values()}
    return str(rng.choice([o for o in objects if o not in taken] or [""]))
