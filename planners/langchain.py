"""What LangChain sees of this: the planner as a Runnable or as the model of an agent, skills as tools, the local model.

chain = RunnablePlanner(planner) | (lambda decision: decision.skill.name)
chain.invoke({"instruction": "bring me the red block", "affordances": {"find red block": 1.0}})
for [event] in runnable_plan(planner, judge, world).stream("bring me the red block"): ...     # Decisions and Steps
create_agent("openai:gpt-5", skill_tools(library, world))                  # any agent that calls tools
create_agent(PlannerModel(planner=planner, judge=judge, world=world), skill_tools(library, world))
PromptTemplate.from_template("A poem on {subject}:\n") | LocalLLM(local=LanguageScorer())
"""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NotRequired, TypedDict

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import LLM, BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult, GenerationChunk
from langchain_core.runnables import Runnable, RunnableConfig, RunnableGenerator, run_in_executor
from langchain_core.tools import StructuredTool, ToolException

from planners.proposal import generate
from planners.saycan import DONE, Decision, Judge, SayCanPlanner, Step, World
from skills.library import Skill
from skills.types import Observation, Outcome, Status


class PlannerInput(TypedDict):
    """What one decision needs."""

    instruction: str
    affordances: Mapping[str, float]  # skill name -> [0, 1]
    history: NotRequired[Sequence[Step]]  # steps executed so far, oldest first
    observation: NotRequired[Observation]  # what the robot knows of the scene


class RunnablePlanner(Runnable[PlannerInput, Decision]):
    """One decision for each invocation. For one caller at a time, as the planner."""

    def __init__(self, planner: SayCanPlanner) -> None:
        self.planner = planner

    def invoke(self, input: PlannerInput, config: RunnableConfig | None = None, **kwargs: Any) -> Decision:
        return self._call_with_config(self._decide, input, config)

    def _decide(self, asked: PlannerInput) -> Decision:
        return self.planner.step(
            asked["instruction"], asked.get("history", ()), asked["affordances"], asked.get("observation")
        )


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
    slots = {slot: list(dict.fromkeys(skill.arguments[slot] for skill in skills)) for slot in skills[0].arguments}

    def call(**arguments: Any) -> tuple[str, dict[str, Any]]:
        skill = by_arguments.get(frozenset((slot, str(value)) for slot, value in arguments.items()))
        if skill is None:
            raise ToolException(f"the robot has no such skill; {_closest(skills, slots, arguments)}")
        with one_at_a_time:
            outcome = world.execute(skill)
        ending = asdict(outcome) | {"status": outcome.status.value}  # plain, so that checkpoints can hold it
        said = f"{skill.text}: {outcome.status.value}"
        return said + (f", {outcome.message}" if outcome.message else ""), ending

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


# -- the planner as the model of an agent --------------------------------------------------------------------------


class PlannerModel(BaseChatModel):
    """A chat model that calls skills as tools as the planner decides, so that an agent's loop drives the robot.

    What LangChain puts around an agent (a person's approval of each call, limits, traces, checkpoints) then works for
    the planner. The last thing that a person said is the instruction.
    """

    planner: Any  # a SayCanPlanner
    judge: Any  # a Judge
    world: Any  # a World; it is only looked at here

    @property
    def _llm_type(self) -> str:
        return "saycan-qt-planner"

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any) -> PlannerModel:
        """The tools are those of `skill_tools` for the planner's own skills."""
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
        said = [number for number, message in enumerate(messages) if isinstance(message, HumanMessage)]
        if not said:
            raise ValueError("nobody has said anything yet; the planner needs an instruction")
        history = self._history(messages[said[-1] + 1 :])
        observation = self.world.observe()
        affordances = self.judge.affordances(observation)
        decision = self.planner.step(str(messages[said[-1]].text), history, affordances, observation)
        if decision.refusal is not None:
            answer = AIMessage(decision.refusal.reason)
        elif decision.done:
            answer = AIMessage("done")
        elif len(history) >= self.planner.config.max_steps:
            answer = AIMessage(f"not done after {len(history)} steps")
        else:
            name = self._names()[decision.skill.family]
            call = {"name": name, "args": dict(decision.skill.arguments), "id": f"step-{len(messages)}"}
            answer = AIMessage(decision.skill.text, tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=answer)])

    def _names(self) -> dict[str, str]:
        return tool_names(dict.fromkeys(skill.family for skill in self.planner.skills if skill.name != DONE))

    def _history(self, messages: Sequence[BaseMessage]) -> list[Step]:
        """The calls that were answered, oldest first; one that was refused counts as failed."""
        families = {name: family for family, name in self._names().items()}
        skills = {(skill.family, frozenset(skill.arguments.items())): skill for skill in self.planner.skills}
        calls = {c["id"]: c for message in messages if isinstance(message, AIMessage) for c in message.tool_calls}
        history = []
        for message in messages:
            if not isinstance(message, ToolMessage) or message.tool_call_id not in calls:
                continue
            call, ending = calls[message.tool_call_id], message.artifact
            skill = skills.get((families.get(call["name"], ""), frozenset(call["args"].items())))
            if skill is None:
                continue  # another tool's
            if isinstance(ending, dict):
                outcome = Outcome(**ending | {"status": Status(ending["status"])})
            else:  # it did not come to the robot: a person refused the call, perhaps
                outcome = Outcome(Status.FAILED, str(message.text))
            history.append(Step(skill, outcome))
        return history


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
