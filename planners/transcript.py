"""What a planner in an agent was asked, and what came of its calls, whatever is done to the messages on their way.

Middleware summarises, cuts, clears and rewrites messages; a planner that believed them would do again what was done, or
what nobody asked for. So each instruction is an errand that is remembered here, and tools write down what they carried
out (`Carried`). An errand that began in another process is read from its messages, if they are whole: a call's id names
the errand, holds a check-sum of the instruction, and counts.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.runtime import get_runtime

from planners.asking import Question
from planners.prompts import Begun
from planners.saycan import Decision, Step
from skills.library import Skill
from skills.rules import Known
from skills.types import Outcome, Status

MOST = 1000  # errands, and endings of calls, that are remembered; the oldest are forgotten
CALL_ID = re.compile(
    r"do-([0-9a-f]{8})-([0-9a-f]{8})-(\d+)"
)  # check-sum of the instruction, errand, number of the call
SHOWN = 80  # letters of somebody's words in a reason
T = TypeVar("T")


class Unreadable(Exception):
    """The messages do not tell what is asked or what was done: why, in one line."""


class Recent(Generic[T]):
    """The MOST entries that were written last. For any number of threads."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: str, entry: T) -> None:
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            while len(self._entries) > MOST:
                self._entries.popitem(last=False)

    def get(self, key: str) -> T | None:
        with self._lock:
            return self._entries.get(key)

    def newest(self, fits: Callable[[T], bool]) -> T | None:
        with self._lock:
            return next((entry for entry in reversed(self._entries.values()) if fits(entry)), None)


@dataclass(frozen=True)
class Run:
    """One invocation of an agent, told apart from all others. Within it nobody but the middleware adds messages."""

    writer: weakref.ref[Any]  # LangGraph's, of which each run has its own; agents within an agent share it, ...
    within: str  # ... and differ in where they were called

    @staticmethod
    def now() -> Run | None:
        """None where no graph runs."""
        try:
            runtime = get_runtime()
        except (RuntimeError, KeyError):
            return None
        if runtime is None:
            return None
        place = runtime.execution_info.checkpoint_ns if runtime.execution_info else ""
        return Run(weakref.ref(runtime.stream_writer), place.rpartition("|")[0])


@dataclass(frozen=True)
class Carried:
    """What a tool carried out."""

    skill: Skill
    outcome: Outcome
    run: Run | None


CARRIED: Recent[Carried] = Recent()  # of all tools of this process, by the id of the call


@dataclass
class Asked:
    """A question that breaks a run off, to be answered when it goes on."""

    decision: Decision
    question: Question
    foreign: int = 0  # so many answers were to questions of other processes


@dataclass
class Errand:
    """One instruction, from a person's words to the planner's last answer."""

    instruction: str
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    steps: list[Step] = field(default_factory=list)
    begun: Begun = field(default_factory=Begun)
    began: Known | None = None  # the scene before the first of them
    calls: int = 0  # made so far
    asked: Skill | None = None  # by the last call, while its end is not known
    answer: str = ""  # the last one, in words
    questions: list[Asked] = field(default_factory=list)  # that broke the next call off
    refused: str = ""  # why, if it is
    over: bool = False
    run: Run | None = None  # which spoke last
    thread: str = ""
    words: frozenset[str] = frozenset()  # ids of the messages that began it
    seen: tuple[Any, ...] = ()  # the messages that it was last read from
    ids: tuple[str | None, ...] = ()  # theirs

    @property
    def call(self) -> str:
        """The id of the last call."""
        return f"do-{checksum(self.instruction)}-{self.name}-{self.calls}"

    def ask(self, skill: Skill) -> None:
        self.calls, self.asked, self.answer = self.calls + 1, skill, skill.text

    def end(self, answer: str, refused: str = "") -> None:
        self.over, self.asked, self.answer, self.refused = True, None, answer, refused


class Errands:
    """One planner's errands."""

    def __init__(self, skills: Iterable[Skill], tool_names: Mapping[str, str]) -> None:
        """tool_names: family of skills -> name of its tool."""
        self._by_call = {(tool_names.get(s.family), frozenset(s.arguments.items())): s for s in skills}
        self._errands: Recent[Errand] = Recent()

    def follow(self, messages: Sequence[AnyMessage | BaseMessage], thread: str = "") -> tuple[Errand, bool]:
        """The errand that the messages are about, its steps up to date, and whether it was already answered with
        these very messages. Raises Unreadable. thread: LangGraph's thread; "" for none."""
        run = Run.now()
        errand = self._known(messages, thread, run)
        seen = tuple((type(m), m.text, getattr(m, "tool_call_id", None)) for m in messages)
        ids = tuple(m.id for m in messages)
        if errand is None or not (self._same(errand, seen, ids, run) or self._speaking(errand, run)):
            words = self._new_words(messages, errand)
            if words:
                self._let_go(errand, messages, words)
                errand = Errand(one(words), words=frozenset(message.id or "" for message in words), thread=thread)
            elif errand is None:
                errand = self._read(messages)
        errand.run = run
        self._errands.put(errand.name, errand)
        again = errand.over or (errand.asked is not None and errand.seen == seen and CARRIED.get(errand.call) is None)
        if errand.asked is not None and not again:
            errand.steps.append(self._ended(errand.call, errand.asked, messages))
            errand.asked = None
        errand.seen, errand.ids = seen, ids
        return errand, again

    def _known(self, messages: Sequence[BaseMessage], thread: str, run: Run | None) -> Errand | None:
        """A run has one errand; else calls name theirs; else a thread goes on with its last."""
        if run is not None and (same := self._errands.newest(lambda errand: errand.run == run)):
            return same
        for message in reversed(messages):
            for call in reversed(_calls_in(message)):
                if (found := CALL_ID.fullmatch(call)) and (errand := self._errands.get(found[2])):
                    return errand
        return self._errands.newest(lambda errand: errand.thread == thread) if thread else None

    @staticmethod
    def _same(errand: Errand, seen: tuple[Any, ...], ids: tuple[str | None, ...], run: Run | None) -> bool:
        """Whether it was read from these very messages. In another run, which may have been interrupted, messages of
        the same words are told apart by their ids; where those were taken away, what is over is not gone on with."""
        known = errand.ids == ids and not (errand.over and None in ids)
        return errand.seen == seen and (run is None or known)

    @staticmethod
    def _speaking(errand: Errand, run: Run | None) -> bool:
        """Whether nobody can have said anything new: this run answered already, or it carried the last call out."""
        if run is None:
            return False
        carried = CARRIED.get(errand.call) if errand.asked is not None else None
        return errand.run == run or (carried is not None and carried.run == run)

    @staticmethod
    def _let_go(errand: Errand | None, messages: Sequence[BaseMessage], words: Sequence[BaseMessage]) -> None:
        """Raises Unreadable where words come with the answer to a call that did not come to the robot: the person who
        refused it may have said them, or the middleware."""
        if errand is None or errand.asked is None or CARRIED.get(errand.call) is not None or Run.now() is None:
            return
        last = [m for m in messages if isinstance(m, AIMessage) or errand.call in _calls_in(m)][-1:]
        if last and isinstance(last[0], ToolMessage):
            raise Unreadable(f"“{_short(words[0].text)}” may be anybody's words; say again what you want")

    @staticmethod
    def _new_words(messages: Sequence[BaseMessage], errand: Errand | None) -> list[BaseMessage]:
        """What people said since the last answer."""
        last = max((n for n, message in enumerate(messages) if isinstance(message, AIMessage)), default=-1)
        said = [message for message in messages[last + 1 :] if _is_persons(message)]
        return [message for message in said if errand is None or not message.id or message.id not in errand.words]

    # -- what came of a call -----------------------------------------------------------------------------------------

    def _ended(self, call: str, asked: Skill, messages: Sequence[BaseMessage]) -> Step:
        """The step that a call became. One that was refused, or never answered, counts as failed."""
        if carried := CARRIED.get(call):
            return Step(carried.skill, carried.outcome)
        made = [c for m in messages if isinstance(m, AIMessage) for c in m.tool_calls if c["id"] == call]
        skill = self._skill(made[0]) if made else asked  # a person may have edited it
        answers = [m for m in messages if isinstance(m, ToolMessage) and m.tool_call_id == call]
        if answers and skill is not None:
            return Step(skill, ending(answers[-1], skill))
        if made:
            return Step(asked, Outcome(Status.FAILED, "it was not carried out"))
        raise Unreadable(f"the messages do not tell how “{asked.text}” ended")

    def _skill(self, call: Mapping[str, Any]) -> Skill | None:
        return self._by_call.get((call["name"], frozenset((k, str(v)) for k, v in call["args"].items())))

    # -- errands of another process ----------------------------------------------------------------------------------

    def _read(self, messages: Sequence[BaseMessage]) -> Errand:
        """What the messages alone tell."""
        calls = [call for m in messages if isinstance(m, AIMessage) for call in m.tool_calls]
        ours = [found for call in calls if (found := CALL_ID.fullmatch(str(call["id"])))]
        said = [message for message in messages if _is_persons(message)]
        if not said and any(isinstance(message, HumanMessage) for message in messages):
            raise Unreadable("a summary stands where the words of a person were")
        if not calls and not said:
            raise Unreadable("nobody has said anything yet; the planner needs an instruction")
        if not ours:  # somebody else's ids: they are as good as the messages are
            if not said:
                raise Unreadable("the messages tell what was done, but not what a person asked for")
            turn = messages[max(n for n, message in enumerate(messages) if message is said[-1]) + 1 :]
            calls = [call for m in turn if isinstance(m, AIMessage) for call in m.tool_calls]
            return self._whole(Errand(one(said[-1:])), [c for c in calls if self._skill(c) is not None], messages)
        last = ours[-1]
        asked = [message for message in said if checksum(message.text) == last[1]]
        if not asked:
            raise Unreadable("the messages do not hold the words that a person began with")
        mine = [found for found in ours if found[2] == last[2]]
        if [int(found[3]) for found in mine] != list(range(1, len(mine) + 1)):
            raise Unreadable(f"the messages do not tell all that was done for “{_short(asked[-1].text)}”")
        names = {found[0] for found in mine}
        errand = Errand(asked[-1].text, name=last[2])
        return self._whole(errand, [call for call in calls if call["id"] in names], messages)

    def _whole(self, errand: Errand, calls: Sequence[Mapping[str, Any]], messages: Sequence[BaseMessage]) -> Errand:
        for call in calls:
            skill = self._skill(call)
            if skill is None:
                raise Unreadable(f"a call of {call['name']} is of no skill that the planner knows")
            errand.steps.append(self._ended(str(call["id"]), skill, messages))
        errand.calls = len(calls)
        return errand


def ending(answer: ToolMessage, skill: Skill) -> Outcome:
    """What a tool's answer says of how a skill ended, by its artifact or its words. Raises Unreadable."""
    if isinstance(answer.artifact, dict) and "status" in answer.artifact:
        return Outcome(Status(answer.artifact["status"]), str(answer.artifact.get("message", "")))
    text = answer.text
    for status in Status:
        said = told(skill, Outcome(status))
        if text == said or text.startswith(f"{said}, "):
            return Outcome(status, text[len(said) + 2 :])
    if answer.status == "error":  # it did not come to the robot: a person refused the call, perhaps
        return Outcome(Status.FAILED, text)
    raise Unreadable(f"the messages do not tell how “{skill.text}” ended, but: “{_short(text)}”")


def told(skill: Skill, outcome: Outcome) -> str:
    """How a skill ended, in a tool's words."""
    return f"{skill.text}: {outcome.status.value}" + (f", {outcome.message}" if outcome.message else "")


def one(said: Sequence[BaseMessage]) -> str:
    """The instruction, where a person said one thing; a picture beside it asks nothing. Raises Unreadable."""
    plain = [message for message in said if _is_text(message)] or said
    texts = list(dict.fromkeys(message.text for message in plain))
    if len(texts) > 1:
        several = ", ".join(f"“{_short(text)}”" for text in texts)
        raise Unreadable(f"several things are said at once: {several}; say one")
    return str(texts[0])


def checksum(instruction: str) -> str:
    return hashlib.sha256(instruction.encode(errors="replace")).hexdigest()[:8]


def _is_persons(message: BaseMessage) -> bool:
    """Not a summary, say, which LangChain marks by where it comes from."""
    return (
        isinstance(message, HumanMessage)
        and "lc_source" not in message.additional_kwargs
        and bool(message.text.strip())
    )


def _is_text(message: BaseMessage) -> bool:
    blocks = message.content if isinstance(message.content, list) else []
    return all(isinstance(block, str) or block.get("type") == "text" for block in blocks)


def _calls_in(message: BaseMessage) -> list[str]:
    if isinstance(message, AIMessage):
        return [str(call["id"]) for call in message.tool_calls]
    return [message.tool_call_id] if isinstance(message, ToolMessage) else []


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 4] + " ..."
