"""Skill and SkillLibrary: what a robot can do, in words, read from a YAML file that a robot team writes.

lists:
  object: [coke can, apple]
  drawer: [top, bottom]
families:
  pick:
    name: pick {object}              # one skill for each object; the instruction that policies are conditioned on
    text: pick up the {object}       # what the language model scores; the name when absent
  place into drawer:
    name: place {object} into {drawer} drawer        # every object with every drawer
  move near:
    name: move {object} near {target}
    pairs:                           # these combinations alone, in the order of the placeholders in the name
      - [coke can, apple]
  tidy up:
    name: tidy up
    learned: false                   # scripted: the robot performs it itself
    when: {not place: home}          # when it is of use (see skills.rules); always, where this is absent
"""

from __future__ import annotations

import difflib
import itertools
import math
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NoReturn, overload

import yaml

from skills import files
from skills.errors import LibraryError, UnknownSkill
from skills.rules import ALWAYS_SAID, KEYS, NOT, VALUE, Case, Condition, Rule

KITCHEN = Path(__file__).parent / "kitchen" / "skills.yaml"
MAX_SKILLS = 100_000  # a library larger than this is a mistake in a template
MAX_SAID = 100  # [characters] of an unknown name that are compared and repeated
MAX_WORD = 1000  # [characters] of a skill's name or text and of what fills it: as many as travel
MAX_COMPARED = 2000  # names among which the nearest is looked for
FAMILY_KEYS = ("name", "text", "learned", "pairs", "when")


@dataclass(frozen=True)
class Skill:
    """One thing a robot can do."""

    name: str  # unique; the instruction that policies are conditioned on, e.g. "pick coke can"
    family: str  # "pick", "move near", "open drawer", ...
    text: str = ""  # what the language model scores, e.g. "pick up the coke can"; the name when empty
    arguments: Mapping[str, str] = field(default_factory=dict)  # e.g. {"object": "coke can", "drawer": "top"}
    learned: bool = True  # False: scripted, the robot performs it itself and its affordance is analytic
    rule: Rule | None = field(default=None, compare=False)  # when it is of use; stays with who read the file

    def __post_init__(self) -> None:
        if not self.text:
            object.__setattr__(self, "text", self.name)


class SkillLibrary(Sequence[Skill]):
    """Skills in the order of their file, found by name or by place: `library["pick apple"]`, `library[0]`."""

    def __init__(self, skills: Iterable[Skill]) -> None:
        self._skills = tuple(skills)
        self._by_name: dict[str, Skill] = {}
        for skill in self._skills:
            if self._by_name.setdefault(skill.name, skill) is not skill:
                raise LibraryError(f"two skills are named {skill.name!r}; names must be unique")

    @classmethod
    def load(cls, path: str | Path | None = None) -> SkillLibrary:
        """Read a skill file; the packaged kitchen without one. Raises LibraryError: file, line, reason."""
        return cls(_read(Path(path) if path is not None else KITCHEN))

    def __len__(self) -> int:
        return len(self._skills)

    def __iter__(self) -> Iterator[Skill]:
        return iter(self._skills)

    def __contains__(self, item: object) -> bool:
        return item in self._by_name if isinstance(item, str) else item in self._skills

    @overload
    def __getitem__(self, key: int | str) -> Skill: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Skill, ...]: ...
    def __getitem__(self, key: int | str | slice) -> Skill | tuple[Skill, ...]:
        if not isinstance(key, str):
            return self._skills[key]
        try:
            return self._by_name[key]
        except KeyError:
            key = key[:MAX_SAID]
            hint = f"did you mean {nearest(key, self._by_name)!r}?" if self._by_name else "the library is empty"
            raise UnknownSkill(f"no skill {key!r} among {len(self)}; {hint}") from None

    def __repr__(self) -> str:
        return f"SkillLibrary({len(self)} skills, {len(self.families)} families)"

    @cached_property
    def families(self) -> Mapping[str, tuple[Skill, ...]]:
        """Family name -> its skills."""
        families: dict[str, list[Skill]] = {}
        for skill in self._skills:
            families.setdefault(skill.family, []).append(skill)
        return {name: tuple(skills) for name, skills in families.items()}

    def values(self, argument: str) -> tuple[str, ...]:
        """All values that an argument takes, each once, e.g. `values("drawer")`."""
        return tuple(dict.fromkeys(s.arguments[argument] for s in self._skills if argument in s.arguments))

    @cached_property
    def objects(self) -> tuple[str, ...]:
        """Everything that some skill takes as its object."""
        return self.values("object")


def nearest(name: str, names: Iterable[str]) -> str:
    """The most alike of names, the first of them at least: to compare takes a while."""
    compared = [one[:MAX_SAID] for one in itertools.islice(names, MAX_COMPARED)]
    return difflib.get_close_matches(name[:MAX_SAID], compared, n=1, cutoff=0.0)[0]


def placeholders(template: str) -> list[str]:
    """The slots of a template such as "pick {object}", in order, each once. Raises ValueError for a slot that is no
    plain word: str.format would also follow attributes, and fill up to any width."""
    parts = list(string.Formatter().parse(template))
    for _, slot, spec, conversion in parts:
        if slot is not None and (not slot.isidentifier() or spec or conversion):
            raise ValueError("a placeholder is a plain word in braces, such as {object}")
    return list(dict.fromkeys(slot for _, slot, _, _ in parts if slot is not None))


# Reading: yaml.compose keeps each node's line, so every complaint can point at its cause.


def _read(path: Path) -> list[Skill]:
    try:
        root = files.compose_yaml(files.read(path))
    except OSError as error:
        raise LibraryError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise LibraryError(f"{path}{line}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise LibraryError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if root is None:
        raise LibraryError(f"{path}:1: the file is empty; it needs `families`")
    return _Reader(path).skills(root)


class _Reader:
    """Turns YAML nodes into skills; `path` is for complaints."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def refuse(self, node: yaml.Node, reason: str) -> NoReturn:
        raise LibraryError(f"{self.path}:{node.start_mark.line + 1}: {reason}")

    def skills(self, root: yaml.Node) -> list[Skill]:
        top = self.mapping(root, "the file", ("lists", "families"))
        if "families" not in top:
            self.refuse(root, "no `families`")
        lists = {
            name: self.words(node, f"list {name!r}")
            for name, node in (self.mapping(top["lists"], "`lists`") if "lists" in top else {}).items()
        }
        skills: dict[str, Skill] = {}
        for family, node in self.mapping(top["families"], "`families`").items():
            for skill in self.family(family, node, lists):
                if skill.name in skills:
                    self.refuse(node, f"family {family!r} names {skill.name!r} a second time")
                skills[skill.name] = skill
                if len(skills) > MAX_SKILLS:
                    self.refuse(node, f"family {family!r} brings the library above {MAX_SKILLS} skills")
        if not skills:
            self.refuse(root, "no skills in `families`")
        return list(skills.values())

    def family(self, family: str, node: yaml.Node, lists: Mapping[str, list[str]]) -> Iterator[Skill]:
        keys = self.mapping(node, f"family {family!r}", FAMILY_KEYS)
        if "name" not in keys:
            self.refuse(node, f"family {family!r} has no `name`, such as `name: pick {{object}}`")
        name, slots = self.template(keys["name"])
        text, text_slots = self.template(keys["text"]) if "text" in keys else (name, slots)
        if set(text_slots) != set(slots):
            self.refuse(keys["text"], f"`text` and `name` of family {family!r} differ in their placeholders")
        learned = self.truth(keys["learned"]) if "learned" in keys else True
        rule = self.rule(keys["when"], slots) if "when" in keys else None
        if "pairs" in keys:
            known = {name: dict.fromkeys(words) for name, words in lists.items()}
            combinations: Iterable[Sequence[str]] = self.pairs(keys["pairs"], slots, known)
        else:
            for slot in slots:
                if slot not in lists:
                    there = ", ".join(itertools.islice(lists, 20)) or "none"
                    self.refuse(keys["name"], f"no list {slot!r} for {{{slot}}}; there are: {there}")
            if (many := math.prod(len(lists[slot]) for slot in slots)) > MAX_SKILLS:
                self.refuse(keys["name"], f"family {family!r} would be {many} skills, at most {MAX_SKILLS} are read")
            combinations = itertools.product(*(lists[slot] for slot in slots))
        for values in combinations:
            arguments = dict(zip(slots, values, strict=True))
            named, said = name.format(**arguments), text.format(**arguments)
            if max(len(named), len(said)) > MAX_WORD:
                self.refuse(node, f"family {family!r} makes a name or text above {MAX_WORD} characters")
            yield Skill(named, family, said, arguments, learned, rule)

    def rule(self, node: yaml.Node, slots: Sequence[str]) -> Rule:
        cases = node.value if isinstance(node, yaml.SequenceNode) and node.value else [node]
        return Rule(tuple(self.case(entry, slots) for entry in cases))

    def case(self, node: yaml.Node, slots: Sequence[str]) -> Case:
        if isinstance(node, yaml.ScalarNode) and node.value == ALWAYS_SAID:
            return Case()
        if not isinstance(node, yaml.MappingNode) or not node.value:
            self.refuse(node, "`when` says what must hold, such as `when: {held: nothing}`, or `always`")
        found = self.mapping(node, "`when`", (*KEYS, *(NOT + key for key in KEYS), VALUE))
        value = 1.0
        if VALUE in found:
            said = self.word(found.pop(VALUE), "a value")
            try:
                value = float(said)
            except ValueError:
                value = -1.0
            if not 0 <= value <= 1:
                self.refuse(node, f"a value is an affordance, 0 to 1, not {said!r}")
        return Case(tuple(self.condition(key, wanted, slots) for key, wanted in found.items()), value)

    def condition(self, key: str, node: yaml.Node, slots: Sequence[str]) -> Condition:
        nodes = node.value if isinstance(node, yaml.SequenceNode) and node.value else [node]
        words = tuple(self.wanted(entry, key, slots) for entry in nodes)
        return Condition(key.removeprefix(NOT), words, key.startswith(NOT))

    def wanted(self, node: yaml.Node, key: str, slots: Sequence[str]) -> str:
        """What a condition is about; {object}, which YAML takes for a mapping, needs no quotes here."""
        match node:
            case yaml.MappingNode(value=[(yaml.ScalarNode(value=slot), yaml.ScalarNode(value=""))]):
                template, found = f"{{{slot}}}", [slot]
            case _:
                template, found = self.template(node)
        if unknown := [slot for slot in found if slot not in slots]:
            self.refuse(node, f"`{key}` is about {{{unknown[0]}}}, which is not in the name")
        return template

    def template(self, node: yaml.Node) -> tuple[str, list[str]]:
        """A template and its placeholders in order."""
        template = self.word(node, "a template")
        try:
            return template, placeholders(template)
        except ValueError as error:
            self.refuse(node, f"{template[:MAX_SAID]!r}: {error}")

    def pairs(self, node: yaml.Node, slots: list[str], lists: Mapping[str, Iterable[str]]) -> Iterator[list[str]]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.refuse(node, "`pairs` must be a list of combinations that is not empty")
        for item in node.value:
            values = self.words(item, "a combination", distinct=False)
            if len(values) != len(slots):
                self.refuse(item, f"{len(values)} values for the placeholders {', '.join(slots) or '(none)'}")
            for slot, value, value_node in zip(slots, values, item.value, strict=True):
                # {target} has no list of its own: it is an object too
                allowed = lists.get(slot, lists.get("object") if slot == "target" else None)
                if allowed is not None and value not in allowed:
                    self.refuse(
                        value_node, f"{value[:MAX_SAID]!r} is in no list; did you mean {nearest(value, allowed)!r}?"
                    )
            yield values

    def mapping(self, node: yaml.Node, what: str, allowed: Sequence[str] = ()) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self.refuse(node, f"{what} must be `key: value` lines")
        found: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = self.word(key_node, f"a key of {what}")
            if key in found:
                self.refuse(key_node, f"{what} has {key!r} twice")
            if allowed and key not in allowed:
                self.refuse(key_node, f"{what} knows no {key!r}; it may have: {', '.join(allowed)}")
            found[key] = value
        return found

    def words(self, node: yaml.Node, what: str, distinct: bool = True) -> list[str]:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.refuse(node, f"{what} must be a list of words that is not empty")
        words: list[str] = []
        seen: set[str] = set()
        for item in node.value:
            word = self.word(item, f"an entry of {what}")
            if distinct and word in seen:
                self.refuse(item, f"{what} has {word[:MAX_SAID]!r} twice")
            words.append(word)
            seen.add(word)
        return words

    def word(self, node: yaml.Node, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self.refuse(node, f"{what} must be plain text")  # an unquoted {object} alone reads as a YAML mapping
        word = " ".join(node.value.split())
        if not word:
            self.refuse(node, f"{what} is empty")
        if len(word) > MAX_WORD:
            self.refuse(node, f"{what} has {len(word)} characters; at most {MAX_WORD}")
        if not word.isprintable():
            self.refuse(node, f"{what} has a character that cannot be read: {word[:MAX_SAID]!r}")
        return word

    def truth(self, node: yaml.Node) -> bool:
        if node.tag != "tag:yaml.org,2002:bool":
            self.refuse(node, "`learned` must be true or false")
        return str(node.value).lower() in ("true", "yes", "on")
