"""What LangChain sees: a plan streamed, skills as tools, an agent driven by the planner, the local model."""

import asyncio
import os
import signal
import threading

import langchain_agent
import langchain_plan
import numpy as np
import pytest
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableParallel
from langchain_core.utils.function_calling import convert_to_openai_tool
from tiny_services import UNHURRIED, LineRobot, Walker, wait_until

from planners.langchain import LocalLLM, PlannerModel, RunnablePlanner, runnable_plan, skill_tools, tool_names
from planners.language import LanguageScorer
from planners.saycan import SayCanPlanner
from planners.weights import text_embedder
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.kitchen.symbolic import SymbolicKitchen
from saycan_qt.language import LanguageConfig
from skills.client import RobotClient, SkillClient
from skills.library import Skill, SkillLibrary
from skills.robot import serve as serve_robot
from skills.server import serve as serve_skills
from skills.types import Outcome, Status

LIBRARY = SkillLibrary.load()


class Here:
    """Judge and World in one."""

    skills = LIBRARY

    def __init__(self):
        self.kitchen = SymbolicKitchen({"apple": "table", "tea": "far counter", "sponge": "table"})
        self.observe = self.kitchen.observe

    def affordances(self, observation):
        return {skill.name: self.kitchen.affordance(skill) for skill in LIBRARY if skill.name != "done"}

    def execute(self, skill):
        return self.kitchen.execute(skill)


@pytest.fixture(scope="module")
def scorer():
    return LanguageScorer()


@pytest.fixture(scope="module")
def planner(scorer):
    return SayCanPlanner(scorer, kitchen_language().prompt(text_embedder()), LIBRARY)


def call(tools, name, arguments):
    (tool,) = [tool for tool in tools if tool.name == name]
    return tool.invoke({"type": "tool_call", "id": "1", "name": name, "args": arguments})


def test_a_plan_streams_event_by_event_and_its_chunks_add_up_to_the_whole(planner):
    def told(events):
        return [type(event).__name__ + " " + event.skill.name for event in events]

    async def later():
        here = Here()
        plan = runnable_plan(planner, here, here)
        return [chunk async for chunk in plan.astream("bring me the apple")]

    here = Here()
    events = list(planner.plan("bring me the apple", here, here))
    assert here.kitchen.where["apple"] == "operator"
    assert [told(chunk) for chunk in asyncio.run(later())] == [told([event]) for event in events]
    again = Here()
    assert (runnable_plan(planner, again, again) | told).invoke("bring me the apple") == told(events)


def test_a_stream_that_is_left_early_moves_the_robot_no_further(planner):
    here = Here()
    stream = runnable_plan(planner, here, here).stream("bring me the tea")
    next(stream)
    stream.close()
    assert here.kitchen.place == "table"


def test_there_is_a_tool_for_each_family_whose_arguments_are_the_librarys():
    tools = skill_tools(LIBRARY, Here())
    assert {tool.name for tool in tools} == {family.replace(" ", "_") for family in LIBRARY.families} - {"done"}
    schema = convert_to_openai_tool(next(tool for tool in tools if tool.name == "place_into_drawer"))["function"]
    assert schema["parameters"]["properties"]["drawer"]["enum"] == ["top", "middle", "bottom"]
    assert schema["parameters"]["required"] == ["object", "drawer"]


def test_two_skills_that_no_call_tells_apart_make_no_tool():
    with pytest.raises(ValueError, match="'wave' and 'bow' are of one family"):
        skill_tools([Skill("wave", "gesture", "wave"), Skill("bow", "gesture", "bow")], Here())


def test_a_tool_carries_a_skill_out_and_tells_how_it_ended():
    here = Here()
    tools = skill_tools(LIBRARY, here)
    done = call(tools, "pick", {"object": "apple"})
    assert done.content == "pick up the apple: succeeded" and here.kitchen.held == "apple"
    failed = call(tools, "pick", {"object": "tea"})
    assert failed.artifact["status"] == "failed" and "not feasible" in failed.content


@pytest.mark.parametrize(
    ("name", "arguments", "hint"),
    [
        ("pick", {"object": "knife"}, "object is one of: 7up can"),
        ("pick", {}, "object is one of"),
        ("pick", {"object": "apple", "force": 9}, "no argument force"),
        ("move_near", {"object": "sponge", "target": "tea"}, "target is one of: apple"),
    ],
)
def test_a_call_that_names_no_skill_moves_nothing_and_tells_what_there_is(name, arguments, hint):
    here = Here()
    answer = call(skill_tools(LIBRARY, here), name, arguments)
    assert answer.status == "error" and hint in answer.content
    assert not here.kitchen.held and not here.kitchen.near


def test_skills_asked_for_at_once_run_one_after_the_other():
    running, most, started = [], [], threading.Barrier(2, timeout=10)

    class Slow(Here):
        def execute(self, skill):
            running.append(skill)
            most.append(len(running))
            threading.Event().wait(0.02)
            running.remove(skill)
            return Outcome(Status.SUCCEEDED)

    def go(drawer):
        started.wait()
        call(tools, "open_drawer", {"drawer": drawer})

    tools = skill_tools(LIBRARY, Slow())
    threads = [threading.Thread(target=go, args=(drawer,)) for drawer in ("top", "bottom")]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert most == [1, 1]


def test_tool_names_are_fit_for_every_provider_and_differ():
    assert tool_names(["go to", "go-to", "去", "走"]) == {
        "go to": "go_to",
        "go-to": "go_to_2",
        "去": "skill",
        "走": "skill_2",
    }


def test_an_agent_whose_model_is_the_planner_carries_an_instruction_out(planner):
    here = Here()
    agent = create_agent(PlannerModel(planner=planner, judge=here, world=here), skill_tools(LIBRARY, here))
    messages = agent.invoke({"messages": [HumanMessage("bring me the apple")]})["messages"]
    assert here.kitchen.where["apple"] == "operator" and messages[-1].text == "done"
    tools = [message for message in messages if isinstance(message, ToolMessage)]
    assert len(tools) == 4 and all(message.text.endswith(": succeeded") for message in tools)


def test_a_refused_call_counts_as_a_failure_and_earlier_instructions_do_not_count(planner):
    model = PlannerModel(planner=planner, judge=Here(), world=Here())

    def asked(number, thing):
        return AIMessage("", tool_calls=[{"id": str(number), "name": "pick", "args": {"object": thing}}])

    messages = [HumanMessage("bring me tea"), asked(1, "tea"), ToolMessage("no", tool_call_id="1", status="error")]
    errand, answered = model._errands.follow(messages)
    (step,) = errand.steps
    assert step.skill is LIBRARY["pick tea"] and not step.outcome.succeeded and not answered
    answer = model.invoke([*messages, HumanMessage("bring me the sponge")])
    assert answer.tool_calls[0]["args"] == {"object": "sponge"}


def test_an_agent_without_the_planners_tools_is_refused(planner):
    here = Here()
    model = PlannerModel(planner=planner, judge=here, world=here)
    with pytest.raises(ValueError, match=r"need the tools .*pick"):
        model.bind_tools(skill_tools([Skill("dance", "dance")], here))


def test_the_example_asks_for_the_language_model_that_its_options_name(monkeypatch):
    class Asked(Exception): ...

    def load(config, *_):
        raise Asked(config)

    monkeypatch.setattr(langchain_plan, "load_language", load)
    for given, wanted in (
        ({}, {}),
        ({"propose": True}, {"adapter": "none"}),
        ({"url": "http://a:1", "model": "m"}, {"model": "http://a:1", "served": "m"}),
        ({"chat": "openai:gpt-5"}, {"chat": "openai:gpt-5"}),
        ({"chat": "http://a:1", "model": "m"}, {"chat": "http://a:1", "served": "m"}),
    ):
        with pytest.raises(Asked) as asked:
            langchain_plan.main(langchain_plan.Config(**given))
        assert asked.value.args[0] == LanguageConfig(**wanted)


class Scripted(FakeMessagesListChatModel):
    """A chat model that calls these tools, all at once, and is done."""

    def __init__(self, *calls):
        asked = [{"id": str(i), "name": name, "args": arguments} for i, (name, arguments) in enumerate(calls)]
        super().__init__(responses=[AIMessage("", tool_calls=asked), AIMessage("done")])

    def bind_tools(self, tools, **_):
        return self


@pytest.fixture
def agent():
    """The example's main, in whose place the tests' own SIGINT comes back."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda **given: langchain_agent.main(langchain_agent.Config(**given))
    signal.signal(signal.SIGINT, before)


def test_the_agents_person_is_asked_for_each_call_and_one_that_is_refused_is_not_carried_out(agent, monkeypatch):
    here, prompts = Here(), []
    monkeypatch.setattr(langchain_agent, "kitchen", lambda *_: here)
    monkeypatch.setattr("builtins.input", lambda text: prompts.append(text) or ("n" if "apple" in text else "y"))
    assert agent(model=Scripted(("pick", {"object": "apple"}), ("pick", {"object": "sponge"})), ask=True) == 0
    assert prompts == ["pick(object=apple): go on? [y/n] ", "pick(object=sponge): go on? [y/n] "]
    assert here.kitchen.held == "sponge"


@pytest.fixture
def line():
    """A robot that runs, and where."""
    robot = LineRobot(period=0.1)
    with (
        serve_skills(LIBRARY, Walker(), Walker(), limits=UNHURRIED) as server,
        SkillClient(server.address) as skills,
        serve_robot(robot, LIBRARY, skills) as service,
    ):
        yield robot, {"server": server.address, "robot": service.address}


ENDLESS = ("open_drawer", {"drawer": "top"})  # the line robot's policy never ends it


def test_ctrl_c_stops_the_robot_in_the_middle_of_an_agents_skill(agent, line):
    robot, there = line

    def interrupt():
        assert robot.moving.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert agent(model=Scripted(ENDLESS), **there) == 130
    wait_until(lambda: not robot.moving.is_set())
    assert robot.applied < 45


def test_an_agents_errand_with_a_robot_that_is_stopped_ends_in_a_line(agent, line, capsys):
    _, there = line
    with RobotClient(there["robot"]) as client:
        client.stop()
    assert agent(model=Scripted(ENDLESS), **there) == 2
    assert capsys.readouterr().err.startswith("error: the robot is stopped")


def test_services_that_are_not_there_are_told_in_a_line(agent, capsys):
    nobody = {"server": "127.0.0.1:1", "robot": "127.0.0.1:2"}
    assert agent(**nobody) == langchain_plan.main(langchain_plan.Config(**nobody)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: the skill server at 127.0.0.1:1") for line in lines)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("bring me the apple", "a str was given, which tells no affordances; RunnablePlanner decides on one step"),
        ({"instruction": "bring me the apple"}, "no affordances"),
        ({"affordances": {}}, "no instruction"),
        ({"instruction": ["bring"], "affordances": {}}, "instruction is a list"),
        ({"instruction": "bring", "affordances": 1.0}, "affordances are a float"),
        ({"instruction": "bring", "affordances": {}, "history": ["find apple"]}, "history has a str"),
        ({"instruction": "bring", "affordances": {}, "seen": {}}, "'seen'"),
        ({"instruction": "bring", "affordances": {"find apple": "1.0"}}, "affordance of 'find apple' is '1.0'"),
    ],
)
def test_what_is_no_input_of_a_decision_is_answered_plainly(planner, given, problem):
    with pytest.raises(ValueError, match=problem) as told:
        RunnablePlanner(planner).invoke(given)
    assert "runnable_plan carries a sentence out" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.slow
def test_decisions_asked_for_at_once_are_those_asked_for_alone(planner):
    here = Here()
    chain, seen = RunnablePlanner(planner), here.observe()
    asked = [
        {"instruction": words, "affordances": here.affordances(seen), "observation": seen}
        for words in ("bring me the apple", "bring me the tea", "throw away the sponge")
    ]
    alone = [chain.invoke(one).skill.name for one in asked]
    assert [one.skill.name for one in chain.batch(asked * 2)] == alone * 2
    other = RunnablePlanner(SayCanPlanner(planner.scorer, planner.prompt, LIBRARY))
    both = RunnableParallel(here=chain, there=other).batch(asked)
    assert [(one["here"].skill.name, one["there"].skill.name) for one in both] == [(name, name) for name in alone]


@pytest.mark.slow
def test_the_local_model_is_an_llm_of_any_chain_and_streams_what_it_answers(scorer):
    llm = LocalLLM(local=scorer, max_tokens=8)
    chain = PromptTemplate.from_template("{first}\n2. two\n3. three\n") | llm.bind(stop=["\n"])
    answer = chain.invoke({"first": "1. one"})
    assert answer == "4. four"
    assert "".join(chain.stream({"first": "1. one"})) == answer
    drawn = [LocalLLM(local=scorer, max_tokens=6, temperature=1.0, seed=s).invoke("Once") for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert np.isfinite(scorer.score("1. one\n2.", [" two\n"])).all()  # scoring goes on undisturbed
