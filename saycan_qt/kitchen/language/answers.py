"""What a person who knows the goal would answer: which skills are right next, in a kitchen of symbols.

right_next(kitchen, instruction.goal, library)       # {"find coke can", "find tea"}: in any order
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from planners.saycan import DONE
from saycan_qt.kitchen.language.errands import Unsuitable
from saycan_qt.kitchen.language.expert import Expert
from saycan_qt.kitchen.symbolic import NOTHING, SymbolicKitchen, each
from skills.connective import OPERATOR
from skills.library import Skill, SkillLibrary

Condition = Mapping[str, Any]
LATER = ("closed", "holding", "robot")  # conditions that bringing about others would undo


def right_next(kitchen: SymbolicKitchen, goal: Iterable[Condition], library: SkillLibrary) -> set[str]:
    """Names of the skills that bring some condition about that does not hold, or with which a way to it begins; "done"
    where all hold. Conditions that others would undo come last, closing a drawer that nothing is to go into excepted.
    What leads to the same kitchen is as right, but not what is about a thing that the goal is not about: who goes to
    the table to find the one will pick it there. Empty where something holds that must not, as too many of a thing."""
    goal = list(goal)
    unmet = [condition for condition in goal if not kitchen.holds(condition)]
    if not unmet:
        return {DONE}
    first = [c for c in unmet if not any(key in c for key in LATER)]
    early = [c for c in unmet if "closed" in c and not any(c["closed"] in _drawers(kitchen, other) for other in first)]
    wanted = [*first, *early] or next(found for key in LATER if (found := [c for c in unmet if key in c]))
    results = [after for condition in wanted for after in _beginnings(kitchen, condition, library)]
    about = {"", kitchen.held, *(name for condition in goal for name in _names(condition))}

    def right(skill: Skill) -> bool:
        if skill.name == DONE or not {skill.arguments.get(slot, "") for slot in ("object", "target")} <= about:
            return False
        after = _after(kitchen, skill.name, library)
        return after is not None and (after in results or any(after.holds(condition) for condition in wanted))

    return {skill.name for skill in library if right(skill)}


def _names(condition: Condition) -> list[str]:
    """The things that a condition is about; "" beside them."""
    named = (condition.get(key, "") for key in ("object", "near", "holding"))
    return [*named, *condition.get("one of", ()), *(_names(condition["not"]) if "not" in condition else ())]


def _drawers(kitchen: SymbolicKitchen, condition: Condition) -> set[str]:
    """Those that must be open to bring a condition about."""
    names = condition.get("one of") or [condition.get("object", "")]
    inside = {place.removesuffix(" drawer") for name in names if (place := kitchen.where.get(name, ""))}
    return inside.union(each(condition.get("in", [])))


def _beginnings(kitchen: SymbolicKitchen, condition: Condition, library: SkillLibrary) -> Iterator[SymbolicKitchen]:
    """The kitchens after the first step of each way to bring a condition about."""
    by_text = {skill.text: skill.name for skill in library}
    for name in condition.get("one of") or [condition.get("object", "")]:
        for where in each(condition.get("at", condition.get("in", ""))):
            expert = Expert(copy.deepcopy(kitchen), library)
            try:
                _carry_out(expert, condition, name, where)
            except (Unsuitable, KeyError):
                continue
            if expert.plan and (after := _after(kitchen, by_text[expert.plan[0]], library)) is not None:
                yield after


def _carry_out(expert: Expert, condition: Condition, name: str, where: str) -> None:
    match condition:
        case {"open": drawer}:
            expert.open(drawer)
        case {"closed": drawer}:
            expert.close(drawer)
        case {"holding": held}:
            expert.release() if held == NOTHING else expert.hold(held)
        case {"robot": place} | {"visited": place}:
            expert.do("bring it to you") if place == OPERATOR else expert.go(place)
        case {"near": other}:
            expert.near(name, other)
        case {"in": _}:
            expert.store(name, where)
        case {"at": _} if name:
            expert.bring(name) if where == OPERATOR else expert.put(name, where)


def _after(kitchen: SymbolicKitchen, skill: str, library: SkillLibrary) -> SymbolicKitchen | None:
    """None where it cannot be done."""
    there = copy.deepcopy(kitchen)
    return there if there.execute(library[skill]).succeeded else None
