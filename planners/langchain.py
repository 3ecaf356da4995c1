"""What LangChain sees of this: the planner as a Runnable or as the model of an agent, skills as tools, the local model.

chain = RunnablePlanner(planner) | (lambda decision: decision.skill.name)
chain.invoke({"instruction": "bring me the red block", "affordances": {"find red block": 1.0}})
for [event] in runnable_plan(planner, judge, world).stream("bring me the red block"): ...     # Decisions and Steps
create_agent("openai:gpt-5", [*skill_tools(library, world), observe_tool(world)])    # any agent that calls tools
create_agent(PlannerModel(planner=planner, judge=judge, world=world), skill_tools(library, world))
PromptTemplate.from_template("A poem on {subject}:\n") | LocalLLM(local=LanguageScorer())
"""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from numbers import Real
from typing import Any, NotRequired, TypedDict

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import LLM, BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult, GenerationChunk
from langchain_core.runnables import Runnable, RunnableConfig, RunnableGenerator, run_in_executor
from langchain_core.tools import StructuredTool, ToolException
from langgraph.prebuilt import ToolRuntime
from langgraph.types import interrupt
from pydantic import PrivateAttr

from planners.asking import Answer, Asking, Question, number_of
from planners.prompts import Begun, describe
from planners.proposal import generate
from planners.saycan import DONE, Decision, Judge, SayCanPlanner, Step, World, last_try_failed
from planners.transcript import CARRIED, Asked, Carried, Errand, Errands, Run, Unreadable, told
from skills.library import Skill
from skills.types import Observation

TAKEN = (
    "RunnablePlanner decides on one step, given {'instruction': text, 'affordances': {skill name: 0 to 1}}, with "
    "history, observation (now) and began (before the history) where there are; runnable_plan carries a sentence out"
)

NOTHING = "nothing that is possible now serves this"


class PlannerInput(TypedDict):
    """What one decision needs."""

    instruction: str
    affordances: Mapping[str, float]  # skill name -> [0, 1]
    history: NotRequired[Sequence[Step]]  # steps executed so far, oldest first
    observation: NotRequired[Observation]  # what the robot knows of the scene now
    began: NotRequired[Observation]  # ... and knew before the first step of the history


class RunnablePlanner(Runnable[PlannerInput, Decision]):
    """One decision for each invocation, whatever else asks the planner at the same time. Raises ValueError for an
    input that it cannot read."""

    def __init__(self, planner: SayCanPlanner) -> None:
        self.planner = planner

    def invoke(self, input: PlannerInput, config: RunnableConfig | None = None, **kwargs: Any) -> Decision:
        return self._call_with_config(self._decide, input, config)

    def _decide(self, asked: PlannerInput) -> Decision:
        if problem := _fault(asked):
            raise ValueError(f"{problem}; {TAKEN}")
        history, seen = asked.get("history") or (), asked.get("observation")
        return self.planner.step(asked["instruction"], history, asked["affordances"], seen, Begun(asked.get("began")))


def _fault(asked: Any) -> str:
    """Why this is no PlannerInput; "" if it is."""
    if not isinstance(asked, Mapping):
        return f"a {type(asked).__name__} was given, which tells no affordances"
    if missing := [name for name in ("instruction", "affordances") if name not in asked]:
        return f"the input has no {' and no '.join(missing)}"
    if unknown := sorted(set(map(str, asked)) - set(PlannerInput.__annotations__)):
        return f"the input has {unknown[0]!r}, which means nothing here"
    if not isinstance(asked["instruction"], str):
        return f"the instruction is a {type(asked['instruction']).__name__}, not text"
    if not isinstance(asked["affordances"], Mapping):
        return f"the affordances are a {type(asked['affordances']).__name__}"
    if odd := next((n for n, v in asked["affordances"].items() if not isinstance(v, Real)), None):
        return f"the affordance of {odd!r} is {asked['affordances'][odd]!r}, no number"
    if wrong := next((step for step in asked.get("history") or () if not isinstance(step, Step)), None):
        return f"the history has a {type(wrong).__name__}, where Steps belong"
    return ""


def runnable_plan(planner: SayCanPlanner, judge: Judge, world: World) -> Runnable[str, list[Decision | Step]]:
    """A whole plan, carried out: an instruction in, all Decisions and Steps out.

    Streamed, they come one by one as lists of one, which add up to the whole as LangChain wants it of chunks. A stream
    that is left early ends before the next skill.
    """

    def stream(instructions: Iterator[str]) -> Iterator[list[Decision | Step]]:
        for event in planner.plan("".join(instructions), judge, world):
            yield [event]

    async def astream(instructions: AsyncIterator[str]) -> AsyncIterator[list[Decision | Step]]:
        events = planner.plan("".join([part async for part in instructions]), judge, world)
        while (event := await run_in_executor(None, next, events, None)) is not None:
            yield [event]

    return RunnableGenerator(stream, astream, name="plan")


# -- skills as tools -----------------------------------------------------------------------------------------------


def skill_tools(skills: Iterable[Skill], world: World) -> list[StructuredTool]:
    """One tool for each family of skills, its arguments limited to the library's; "done" is the agent's own to say.

    A call answers with how the skill ended, the Outcome's fields as its artifact; one that names no skill answers with
    what there is. The robot carries out one skill at a time, whatever an agent asks for at once.
    """
    families: dict[str, list[Skill]] = {}
    for skill in skills:
        if skill.name != DONE:
            families.setdefault(skill.family, []).append(skill)
    one_at_a_time = threading.Lock()
    return [_tool(name, families[family], world, one_at_a_time) for family, name in tool_names(families).items()]


def tool_names(families: Iterable[str]) -> dict[str, str]:
    """Family -> the name of its tool: letters, digits and underscores, as every provider allows."""
    names: dict[str, str] = {}
    for family in families:
        name = plain = re.sub(r"[^a-zA-Z0-9]+", "_", family).strip("_")[:50] or "skill"
        for number in range(2, 2 + len(names)):
            if name in names.values():
                name = f"{plain}_{number}"
        names[family] = name
    return names


def _tool(name: str, skills: list[Skill], world: World, one_at_a_time: threading.Lock) -> StructuredTool:
    by_arguments = {frozenset(skill.arguments.items()): skill for skill in skills}
    if twin := next((skill for skill in skills if skill not in by_arguments.values()), None):
        other = by_arguments[frozenset(twin.arguments.items())]
        raise ValueError(
            f"{twin.name!r} and {other.name!r} are of one family and have the same arguments, so that no "
            "call tells them apart; give each a family of its own"
        )
    slots = {slot: list(dict.fromkeys(skill.arguments[slot] for skill in skills)) for slot in skills[0].arguments}

    def call(*, agents_runtime: ToolRuntime | None = None, **arguments: Any) -> tuple[str, dict[str, Any]]:
        skill = by_arguments.get(frozenset((slot, str(value)) for slot, value in arguments.items()))
        if skill is None:
            raise ToolException(f"the robot has no such skill; {_closest(skills, slots, arguments)}")
        with one_at_a_time:
            outcome = world.execute(skill)
        if agents_runtime is not None and agents_runtime.tool_call_id:
            CARRIED.put(agents_runtime.tool_call_id, Carried(skill, outcome, Run.now()))
        ending = asdict(outcome) | {"status": outcome.status.value}  # plain, so that checkpoints can hold it
        return told(skill, outcome), ending

    return StructuredTool(
        name=name,
        description=f'Make the robot do one thing, for instance "{skills[0].text}".',
        args_schema={
            "type": "object",
            "properties": {slot: {"type": "string", "enum": values} for slot, values in slots.items()},
            "required": list(slots),
            "additionalProperties": False,
        },
        func=call,
        response_format="content_and_artifact",
        handle_tool_error=True,  # the model reads it and may try again
    )


def _closest(skills: list[Skill], slots: Mapping[str, list[str]], arguments: Mapping[str, Any]) -> str:
    """What a call could have meant."""
    for slot, values in slots.items():
        if arguments.get(slot) not in values:
            return f"{slot} is one of: {', '.join(values)}"
    if extra := set(arguments) - set(slots):
        return f"there is no argument {', '.join(sorted(extra))}"
    agreeing = [skill.text for skill in skills if set(skill.arguments.items()) & set(arguments.items())]
    return f"there is: {', '.join(agreeing)}"


def observe_tool(world: World) -> StructuredTool:
    """A look at the scene: what lies where, where the robot is, and what it holds, as far as the robot knows. Pictures
    and numbers stay with the robot."""

    def observe() -> tuple[str, dict[str, Any]]:
        seen = world.observe()
        known = {"place": seen.place, "held": seen.held, "objects": dict(seen.objects)}
        return describe(seen), known

    return StructuredTool(
        name="observe",
        description="Look what lies where, where the robot is, and what it holds. Moves nothing.",
        args_schema={"type": "object", "properties": {}, "additionalProperties": False},
        func=observe,
        response_format="content_and_artifact",
    )


# -- the planner as the model of an agent --------------------------------------------------------------------------


class PlannerModel(BaseChatModel):
    """A chat model that calls skills as tools as the planner decides, so that an agent's loop drives the robot.

    What LangChain puts around an agent (a person's approval of each call, limits, traces, checkpoints, summaries) then
    works for the planner. What a person says is the instruction until it is carried out, or until a person says
    something else in another run. What was asked and done is remembered here, by run, thread and call (see
    `planners.transcript`), whatever becomes of the messages. Where nothing tells it any more, the answer says so, and
    calls nothing; why is then in `response_metadata["refused"]`, as is why an instruction cannot be served.

    With `asking` a run is interrupted where the planner is unsure (`langgraph.types.interrupt`, which needs a
    checkpointer): {"instruction", "reason", "options", "confidence"}. `Command(resume=...)` answers: an option, or its
    number from 1; other words, which take the place of the instruction; or nothing, which ends it.
    """

    planner: Any  # a SayCanPlanner
    judge: Any  # a Judge
    world: Any  # a World; it is only looked at here
    asking: Asking = Asking()  # when a person is asked
    _errands: Errands = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._errands = Errands(self.planner.skills, self._names())

    @property
    def _llm_type(self) -> str:
        return "saycan-qt-planner"

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any) -> PlannerModel:
        """The tools are those of `skill_tools` for the planner's own skills; others are left alone."""
        needed = set(self._names().values())
        if missing := needed - {getattr(tool, "name", "") for tool in tools}:
            raise ValueError(f"the planner's skills need the tools {', '.join(sorted(missing))}; see skill_tools")
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        thread = str(((run_manager and run_manager.metadata) or {}).get("thread_id") or "")
        try:
            errand, answered = self._errands.follow(messages, thread)
            if not answered:
                self._decide(errand)
            refused = errand.refused
            answer = AIMessage(errand.answer)
            if errand.asked is not None:
                name = self._names()[errand.asked.family]
                call = {"name": name, "args": dict(errand.asked.arguments), "id": errand.call}
                answer = AIMessage(errand.answer, tool_calls=[call])
        except Unreadable as unreadable:
            refused = str(unreadable)
            answer = AIMessage(f"The robot is not moved: {refused}.")
        if refused:
            answer.response_metadata["refused"] = refused
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def _decide(self, errand: Errand) -> None:
        """The errand's next call, or its end. A question breaks it off before it changes anything, and when it is
        answered LangGraph begins here again; the answer is of what was asked then, whatever is seen by now."""
        instruction, steps = errand.instruction, list(errand.steps)
        question: Question | None
        for turn in count():
            if new := turn == len(errand.questions):
                observation = self.world.observe()
                possible = self.judge.affordances(observation)
                decision = self.planner.step(instruction, steps, possible, observation, errand.begun)
                errand.began = errand.began if steps and errand.began else observation
                question = self.asking.question(instruction, decision, steps, errand.began)
            else:
                decision, question = errand.questions[turn].decision, errand.questions[turn].question
            if question is None:
                answer = Answer(decision.skill)
                break
            if Run.now() is None:
                reason = f"{question.reason}; no graph runs here in which a person could be asked"
                errand.end(reason, refused=reason)
                return
            if new:
                errand.questions.append(Asked(decision, question))
            answer = _answer(errand.questions[turn], new)
            if not answer.instruction:
                break
            instruction, steps = answer.instruction, []
        errand.instruction, errand.steps, errand.questions = instruction, steps, []
        refusal = decision.refusal
        if refusal is not None and (question is None or answer.skill is None):
            errand.end(refusal.reason, refused=refusal.reason)
        elif answer.skill is None:
            errand.end("stopped")
        elif question is None and decision.stuck:
            errand.end(NOTHING, refused=NOTHING)
        elif answer.skill.name == DONE and (failed := last_try_failed(steps)) is not None:
            reason = f"not carried out: the last try of “{failed.skill.text}” {failed.outcome.status.value}"
            errand.end(reason, refused=reason)
        elif answer.skill.name == DONE:
            errand.end("done")
        elif len(errand.steps) >= self.planner.config.max_steps:
            errand.end(f"not done after {len(errand.steps)} steps")
        else:
            errand.ask(answer.skill)

    def _names(self) -> dict[str, str]:
        return tool_names(dict.fromkeys(skill.family for skill in self.planner.skills if skill.name != DONE))


def _answer(asked: Asked, new: bool) -> Answer:
    """What the person says who is asked by LangGraph. new: nobody can have answered it. What comes at once all the same
    answers questions of other processes, and counts where it says more than "the second" or "not that"."""
    question = asked.question
    for turn in count():
        said = interrupt(question.told)
        if new:
            asked.foreign = turn + 1
        words = "" if said is None else " ".join(str(said).split())
        approves = isinstance(said, bool) or not isinstance(said, str | int | None)  # as other questions are answered
        answer = None if approves else question.understand(words)
        if answer is None or (turn < asked.foreign and (number_of(words) is not None or answer.veto)):
            continue
        if not answer.veto:
            return answer
        question = question.vetoed()
    raise AssertionError("it is asked until it is answered")


# -- the local model -----------------------------------------------------------------------------------------------


class LocalLLM(LLM):
    """A LanguageScorer's model as a LangChain LLM: a text in, its continuation out."""

    local: Any  # a LanguageScorer
    max_tokens: int = 64
    temperature: float = 0.0  # 0: always the likeliest token
    seed: int = 0  # of each call

    @property
    def _llm_type(self) -> str:
        return "saycan-qt-local"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        model = str(getattr(self.local, "path", self.local.model.config.name_or_path))
        settings = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed}
        return {"model_name": model} | settings

    def _call(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        return "".join(chunk.text for chunk in self._stream(prompt, stop))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        hidden = max(map(len, stop or ()), default=1) - 1  # letters that may turn out to begin a stop word
        shown, text = "", ""
        for [text] in generate(self.local, prompt, self.max_tokens, stop or (), 1, self.temperature, generator):
            ready = text[: len(text) - hidden].rstrip("\ufffd")  # half a letter is completed by the next token
            if len(ready) > len(shown):
                chunk = GenerationChunk(text=ready[len(shown) :])
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk
                shown = ready
        if len(text) > len(shown):
            yield GenerationChunk(text=text[len(shown) :])
