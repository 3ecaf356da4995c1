"""An agent whose model is the planner, and what LangChain users put around agents: the robot does what was asked."""

import asyncio
import itertools
import re

import numpy as np
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    ClearToolUsesEdit,
    ContextEditingMiddleware,
    HumanInTheLoopMiddleware,
    LLMToolEmulator,
    ModelCallLimitMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    TodoListMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
    after_model,
    before_model,
    wrap_model_call,
)
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    ToolMessage,
    convert_to_messages,
    convert_to_openai_messages,
    trim_messages,
)
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphRecursionError
from langgraph.types import Command

from planners.asking import Asking
from planners.langchain import NOTHING, PlannerModel, observe_tool, skill_tools
from planners.prompts import Prompt
from planners.saycan import SayCanConfig, SayCanPlanner
from skills.library import Skill
from skills.types import Observation, Outcome, Status

VERBS, THINGS = ("take", "wash"), ("cup", "plate", "fork")
SKILLS = (
    *(Skill(f"{verb} {thing}", verb, f"{verb} the {thing}", {"object": thing}) for verb in VERBS for thing in THINGS),
    Skill("done", "done"),
)
WASHED = ["take cup", "wash cup"]  # what "wash the cup please" is


class Plans:
    """A scorer that knows one plan: "wash the X please" is to take the X, and to wash it."""

    def score(self, prompt, candidates):
        *_, last = re.split("Instruction: ", prompt)
        asked, done = last.splitlines()[0], len(last.splitlines()) - 2
        thing = (re.findall(r"wash the (\w+) please", asked) or ["fork"])[0]
        likely = f" {[f'take the {thing}', f'wash the {thing}', 'done'][min(done, 2)]}\n"
        return np.log([0.9 if candidate == likely else 0.01 for candidate in candidates])


class Embedder:
    def encode(self, texts, **options):
        return np.ones((len(texts), 1))


class House:
    """Judge and World in one: everything is possible, and succeeds unless told otherwise."""

    def __init__(self, endings=()):
        self.done, self.endings, self.possible = [], iter(endings), 1.0

    def observe(self):
        return Observation({}, np.zeros(0, np.float32), "sink", "cup", {"cup": "sink"})

    def affordances(self, observation):
        return {skill.name: self.possible for skill in SKILLS}

    def execute(self, skill):
        self.done.append(skill.name)
        return Outcome(next(self.endings, Status.SUCCEEDED))


def model_of(house, asking=Asking(), **settings):  # noqa: B008, it is frozen
    planner = SayCanPlanner(Plans(), Prompt(Embedder(), [], []), SKILLS, SayCanConfig(**{"refuse": False} | settings))
    return PlannerModel(planner=planner, judge=house, world=house, asking=asking)


def agent_of(house, *middleware, model=None, saver=None, tools=()):
    tools = [*skill_tools(SKILLS, house), *tools]
    return create_agent(model or model_of(house), tools, middleware=middleware, checkpointer=saver)


def asks(text="wash the cup please"):
    return {"messages": [HumanMessage(text)]}


def thread(name="1"):
    return {"configurable": {"thread_id": name}, "recursion_limit": 60}


SAYS = GenericFakeChatModel(messages=(AIMessage("Somebody wants the plate washed.") for _ in itertools.count()))


@wrap_model_call
def openai_form(request, handler):
    return handler(request.override(messages=convert_to_messages(convert_to_openai_messages(request.messages))))


@wrap_model_call
def window(request, handler):
    return handler(request.override(messages=[request.messages[0], *request.messages[1:][-4:]]))


@wrap_model_call
def first_message_only(request, handler):
    return handler(request.override(messages=request.messages[:1]))


@wrap_model_call
def trimmed(request, handler):
    kept = trim_messages(request.messages, max_tokens=2, token_counter=len, strategy="last", start_on="human")
    return handler(request.override(messages=kept))


@wrap_model_call
def asked_twice(request, handler):
    handler(request)
    return handler(request)


@wrap_model_call
def swapped(request, handler):
    return handler(request.override(messages=[*request.messages[:-2], *request.messages[:-3:-1]]))


@before_model
def picture(state, runtime):
    if isinstance(state["messages"][-1], ToolMessage):
        return {"messages": [HumanMessage([{"type": "text", "text": "wash the plate please"}])]}


@before_model
def picture_at_once(state, runtime):
    block = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}
    return {"messages": [HumanMessage([{"type": "text", "text": "The camera now:"}, block])]}


@wrap_model_call
def results_in_other_words(request, handler):
    words = {"content": "Fine!", "artifact": None}
    changed = [m.model_copy(update=words) if isinstance(m, ToolMessage) else m for m in request.messages]
    return handler(request.override(messages=changed))


AROUND = {
    "nothing": (),
    "a summary in place of the messages": (
        SummarizationMiddleware(SAYS, trigger=("messages", 3), keep=("messages", 1)),
    ),
    "cleared results": (ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=1, keep=1)]),),
    "all results cleared": (ContextEditingMiddleware(edits=[ClearToolUsesEdit(trigger=1, keep=0)]),),
    "OpenAI's form and back": (openai_form,),
    "a window": (window,),
    "nothing but the first message": (first_message_only,),
    "trimmed to nothing": (trimmed,),
    "words after each skill": (picture,),
    "a picture before each": (picture_at_once,),
    "results in other words": (results_in_other_words,),
    "every question asked twice": (asked_twice,),
    "a list of things to do": (TodoListMiddleware(),),
    "names taken out": (PIIMiddleware("email", apply_to_tool_results=True), PIIMiddleware("ip", apply_to_output=True)),
    "limits that are far": (ModelCallLimitMiddleware(run_limit=9), ToolCallLimitMiddleware(run_limit=9)),
    "tries again": (ToolRetryMiddleware(),),
    "several of them": (picture, openai_form, SummarizationMiddleware(SAYS, trigger=("messages", 2))),
}


@pytest.mark.parametrize("around", AROUND)
def test_whatever_becomes_of_the_messages_the_robot_does_once_what_a_person_asked(around):
    house = House()
    last = agent_of(house, *AROUND[around]).invoke(asks(), {"recursion_limit": 60})["messages"][-1]
    assert house.done == WASHED and last.text == "done"


@pytest.mark.parametrize("around", ["nothing", "a summary in place of the messages", "words after each skill"])
def test_so_it_does_asynchronously_streamed_and_in_threads_of_a_checkpointer(around):
    async def later(house):
        return await agent_of(house, *AROUND[around]).ainvoke(asks())

    house = House()
    asyncio.run(later(house))
    streamed = House()
    list(agent_of(streamed, *AROUND[around]).stream(asks(), stream_mode="messages"))
    assert house.done == streamed.done == WASHED

    house = House()
    agent = agent_of(house, *AROUND[around], saver=InMemorySaver())
    for name, thing in (("1", "cup"), ("2", "plate"), ("1", "cup"), ("1", "plate")):
        agent.invoke(asks(f"wash the {thing} please"), thread(name))
    assert house.done == [f"{verb} {thing}" for thing in ("cup", "plate", "cup", "plate") for verb in ("take", "wash")]


def test_a_failure_stays_a_failure_in_whatever_form_and_a_limit_counts_all_steps():
    house = House([Status.FAILED] * 9)
    last = agent_of(house, openai_form, window, model=model_of(house, max_steps=4)).invoke(asks())["messages"][-1]
    assert house.done[:2] == ["take cup"] * 2 and len(house.done) == 4 and last.text == "not done after 4 steps"


MAY = {"allowed_decisions": ["approve", "edit", "reject"]}
APPROVE, REJECT = ({"type": kind} for kind in ("approve", "reject"))
EDIT = {"type": "edit", "edited_action": {"name": "take", "args": {"object": "plate"}}}


@pytest.mark.parametrize(
    ("around", "decisions", "done"),
    [
        ((), [APPROVE, APPROVE], WASHED),
        ((), [REJECT, APPROVE, APPROVE], WASHED),
        ((), [EDIT, APPROVE], ["take plate", "wash cup"]),
        ((picture,), [APPROVE, APPROVE], WASHED),
        ((openai_form, window), [EDIT, APPROVE], ["take plate", "wash cup"]),
    ],
)
def test_a_person_approves_edits_and_refuses_calls(around, decisions, done):
    house = House()
    hitl = HumanInTheLoopMiddleware(interrupt_on={"take": MAY, "wash": MAY})
    agent = agent_of(house, hitl, *around, saver=InMemorySaver())
    state = agent.invoke(asks(), thread())
    for decision in decisions:
        assert "__interrupt__" in state
        state = agent.invoke(Command(resume={"decisions": [decision]}), thread())
    assert house.done == done and state["messages"][-1].text == "done"


@pytest.mark.parametrize(
    ("answers", "done", "end"),
    [
        ([1, "1", 1], WASHED, "done"),
        (["wash the cup", 1, 1], ["wash cup", "wash cup"], "done"),
        ([9, 1, 1, 1], WASHED, "done"),
        ([1, "wash the plate please", 1, 1, 1], ["take cup", "take plate", "wash plate"], "done"),
        ([1, ""], ["take cup"], "stopped"),
    ],
)
@pytest.mark.parametrize("around", [(), (openai_form, picture)])
def test_where_the_planner_asks_the_run_is_interrupted_and_goes_on_as_it_is_answered(answers, done, end, around):
    house = House()
    agent = agent_of(house, *around, model=model_of(house, Asking("always")), saver=InMemorySaver())
    state = agent.invoke(asks(), thread())
    asked = state["__interrupt__"][0].value
    assert asked["instruction"] == "wash the cup please" and asked["options"][0] == "take the cup"
    for answer in answers:
        assert "__interrupt__" in state
        state = agent.invoke(Command(resume=answer), thread())
    assert house.done == done and state["messages"][-1].text == end


class Changing(House):
    """What is possible there is another thing at each look."""

    def affordances(self, observation):
        self.looks = getattr(self, "looks", 0) + 1
        mine, other = ("cup", "plate") if self.looks % 2 else ("plate", "cup")
        return super().affordances(observation) | {f"take {mine}": 1.0, f"take {other}": 0.001}


@pytest.mark.parametrize("answer", ["1", "stop", "veto"])
def test_an_answer_is_of_the_question_that_was_asked_whatever_is_seen_by_then(answer):
    house = Changing()
    agent = agent_of(house, model=model_of(house, Asking("always")), saver=InMemorySaver())
    asked = agent.invoke(asks(), thread())["__interrupt__"][0].value["options"]
    state = agent.invoke(Command(resume=answer), thread())
    said = state["__interrupt__"][0].value if "__interrupt__" in state else {"reason": ""}
    if answer == "veto":
        assert f"not “{asked[0]}”" in said["reason"] and not house.done
    else:
        assert [f"take the {name.split()[1]}" for name in house.done] == asked[: answer == "1"]


def test_a_number_that_answers_another_process_and_an_approval_are_asked_for_again():
    house, saver = House(), InMemorySaver()
    agent_of(house, model=model_of(house, Asking("always")), saver=saver).invoke(asks(), thread())
    for said in ("2", "2", True, {"decisions": []}):
        again = agent_of(house, model=model_of(house, Asking("always")), saver=saver)
        assert "__interrupt__" in again.invoke(Command(resume=said), thread()) and not house.done
    again.invoke(Command(resume="take the plate"), thread())
    assert house.done == ["take plate"]


def test_where_nothing_that_is_possible_serves_it_nothing_is_done():
    """not even what affordance finds likeliest"""
    house = House()
    model = model_of(house)
    model.planner._lowered = lambda skill, history: 0.0
    assert [event.stuck for event in model.planner.plan("wash the cup please", house, house)] == [True]
    answer = agent_of(house, model=model).invoke(asks())["messages"][-1]
    assert not house.done and answer.response_metadata["refused"] == answer.text == NOTHING


def test_a_planner_that_is_sure_does_not_ask_and_where_nobody_can_be_asked_it_says_so():
    house = House()
    agent = agent_of(house, model=model_of(house, Asking("when-unsure", 0.1)), saver=InMemorySaver())
    agent.invoke(asks(), thread())
    assert house.done == WASHED
    answer = model_of(house, Asking("always")).invoke(asks()["messages"])
    assert "no graph runs here" in answer.response_metadata["refused"] and not answer.tool_calls


@pytest.mark.parametrize("around", [(picture,), (picture, swapped)])
def test_words_that_come_with_a_refused_call_could_be_anybodys_and_move_nothing(around):
    house = House()
    agent = agent_of(house, HumanInTheLoopMiddleware(interrupt_on={"take": MAY}), *around, saver=InMemorySaver())
    agent.invoke(asks(), thread())
    answer = agent.invoke(Command(resume={"decisions": [REJECT]}), thread())["messages"][-1]
    assert "“wash the plate please”" in answer.response_metadata["refused"] and not house.done


@pytest.mark.parametrize("around", [(), (openai_form,), (asked_twice,)])
def test_the_same_words_in_another_run_are_looked_at_anew_without_a_checkpointer_too(around):
    house = House()
    agent = agent_of(house, *around)
    house.possible = 0.0
    assert agent.invoke(asks(), thread())["messages"][-1].text == "done" and not house.done
    house.possible = 1.0
    agent.invoke(asks(), thread())
    assert house.done == WASHED


def test_why_it_is_refused_is_told_as_often_as_it_is_asked():
    house = House()
    agent = agent_of(house, asked_twice, model=model_of(house, refuse=True))
    answer = agent.invoke(asks("wash the cup please " * 200))["messages"][-1]
    assert "at most 2,000 letters" in answer.response_metadata["refused"] and not house.done


def test_a_person_who_breaks_in_is_obeyed_and_what_was_left_is_not_taken_up():
    house = House()
    agent = agent_of(house, saver=InMemorySaver())
    with pytest.raises(GraphRecursionError):
        agent.invoke(asks(), thread() | {"recursion_limit": 3})
    assert house.done == ["take cup"]
    agent.invoke(asks("wash the plate please"), thread())
    assert house.done == ["take cup", "take plate", "wash plate"]


def test_after_its_end_an_errand_is_not_taken_up_by_words_that_no_person_said():
    @after_model(can_jump_to=["model"])
    def doubts(state, runtime):
        if not state["messages"][-1].tool_calls and len(state["messages"]) < 9:
            return {"messages": [HumanMessage("wash the plate please")], "jump_to": "model"}

    house = House()
    assert agent_of(house, doubts).invoke(asks())["messages"][-1].text == "done" and house.done == WASHED


def test_another_process_goes_on_from_whole_messages_and_refuses_what_was_cut_out_of_them():
    house = House()
    begun = agent_of(house).invoke(asks())["messages"][:-1]  # ... the answer "done"
    assert model_of(house).invoke(begun).text == "done"
    first, call, result, *rest = begun
    plain = convert_to_messages(convert_to_openai_messages([first, call, result]))
    assert model_of(house).invoke(plain).tool_calls[0]["name"] == "wash"
    summary = HumanMessage("A summary", additional_kwargs={"lc_source": "summarization"})
    cleared = result.model_copy(update={"content": "[cleared]", "artifact": None})
    from planners import transcript

    for cut, reason in (
        ([first, *rest], "all that was done for “wash the cup please”"),
        ([summary, call, result], "a summary stands"),
        ([HumanMessage("See the state."), call, result], "the words that a person began with"),
        ([summary], "a summary stands"),
        ([], "nobody has said anything"),
    ):
        answer = model_of(house).invoke(cut)
        assert reason in answer.response_metadata["refused"] and not answer.tool_calls
    transcript.CARRIED = transcript.Recent()  # the tools ran in the other process, too
    answer = model_of(house).invoke([first, call, cleared])
    assert "how “take the cup” ended, but: “[cleared]”" in answer.text and not answer.tool_calls


def test_several_things_said_at_once_move_nothing_and_the_answer_tells_them():
    house = House()
    both = {"messages": [*asks()["messages"], HumanMessage("wash the plate please")]}
    answer = agent_of(house).invoke(both)["messages"][-1]
    assert "“wash the cup please”, “wash the plate please”; say one" in answer.text and not house.done


def test_a_tool_that_is_not_really_called_moves_nothing_on_paper_either():
    house = House()
    says = GenericFakeChatModel(messages=iter(["The cup has been taken!"]))
    answer = agent_of(house, LLMToolEmulator(model=says)).invoke(asks())["messages"][-1]
    assert "how “take the cup” ended, but: “The cup has been taken!”" in answer.text and not house.done


def test_limits_that_are_near_end_it_and_what_is_asked_next_begins_anew():
    house = House()
    limit = ToolCallLimitMiddleware(run_limit=1, exit_behavior="end")
    agent = agent_of(house, limit, saver=InMemorySaver())
    agent.invoke(asks(), thread())
    assert house.done == ["take cup"]
    agent.invoke(asks("wash the plate please"), thread())
    assert house.done == ["take cup", "take plate"]


def test_an_agent_that_is_a_tool_of_another_takes_one_errand_after_the_other():
    house = House()
    worker = agent_of(house)

    @tool
    def robot(words: str) -> str:
        """What the robot shall do."""
        return worker.invoke(asks(words))["messages"][-1].text

    calls = [
        AIMessage("", tool_calls=[{"name": "robot", "args": {"words": f"wash the {t} please"}, "id": t}])
        for t in ("cup", "plate")
    ]

    class Boss(GenericFakeChatModel):
        def bind_tools(self, tools, **options):
            return self

    boss = create_agent(Boss(messages=iter([*calls, AIMessage("good")])), [robot], checkpointer=InMemorySaver())
    assert boss.invoke(asks("the dishes"), thread())["messages"][-1].text == "good"
    assert house.done == [*WASHED, "take plate", "wash plate"]


@pytest.mark.parametrize(("factor", "says"), [(0.7, NOTHING), (1e-3, "the last try of “take the cup” failed")])
def test_an_agent_for_whom_all_fails_does_not_say_that_it_is_done(factor, says):
    house = House(itertools.repeat(Status.FAILED))
    agent = agent_of(house, model=model_of(house, failure_factor=factor))
    *_, last = agent.invoke(asks(), thread() | {"recursion_limit": 200})["messages"]
    assert says in last.text and last.response_metadata["refused"] == last.text
    assert house.done.count("take cup") == (5 if says == NOTHING else 1)


def test_an_agent_may_look_and_moves_nothing_by_it():
    house = House()
    seen = observe_tool(house).invoke({"type": "tool_call", "id": "1", "name": "observe", "args": {}})
    assert seen.text == "Scene: robot: sink; hand: cup" and not house.done
    assert seen.artifact == {"place": "sink", "held": "cup", "objects": {"cup": "sink"}}
    agent_of(house, tools=[observe_tool(house)]).invoke(asks())
    assert house.done == WASHED
