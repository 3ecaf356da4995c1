"""A LangChain agent whose tools are the robot's skills.

python examples/langchain_agent.py "throw away the apple"                       # the planner is the agent's model
python examples/langchain_agent.py "throw away the apple" --ask                 # you approve every skill
python examples/langchain_agent.py "throw away the apple" --model openai:gpt-5  # pip install langchain-openai
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from kitchen import exit_code, kitchen
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from planners.langchain import PlannerModel, observe_tool, skill_tools
from planners.saycan import SayCanConfig
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.language import LanguageConfig, load_language, planner_of


@dataclass(frozen=True)
class Config:
    instruction: Annotated[str, tyro.conf.Positional] = "bring me a snack"
    seed: int = 0  # which kitchen of symbols
    server: str = ""  # instead of a kitchen of symbols: a skill server that runs ...
    robot: str = ""  # ... and a robot
    model: str = ""  # a chat model that calls tools, as langchain's init_chat_model names it; by default the planner
    ask: bool = False  # ask before every skill


def decide(call: Mapping[str, Any]) -> dict[str, str]:
    """What a person says of one call."""
    arguments = ", ".join(f"{name}={value}" for name, value in call["args"].items())
    answer = input(f"{call['name']}({arguments}): go on? [y/n] ")
    return {"type": "approve" if answer.strip().lower().startswith("y") else "reject"}


def carry_out(config: Config) -> int:
    here = kitchen(config.seed, config.server, config.robot)

    def interrupted(*_: object) -> None:
        """Skills run on threads of LangGraph's, for which a KeyboardInterrupt alone waits while the robot moves."""
        threading.Thread(target=here.close).start()  # not here, in the middle of what may hold gRPC's locks
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    tools = skill_tools(here.skills, here)
    model: Any = config.model
    if not model:
        language = load_language(LanguageConfig(), kitchen_language(), here.skills)
        planner = planner_of("saycan", language, here.skills, SayCanConfig())
        model = PlannerModel(planner=planner, judge=here, world=here)
    allowed: dict[str, Any] = {tool.name: {"allowed_decisions": ["approve", "reject"]} for tool in tools}
    agent = create_agent(
        model,
        [*tools, observe_tool(here)],
        system_prompt="You move a robot in a kitchen by calling its skills, one at a time, until the person has what "
        "they asked for. Find a thing before you pick it up.",
        middleware=[HumanInTheLoopMiddleware(interrupt_on=allowed)] if config.ask else [],
        checkpointer=InMemorySaver() if config.ask else None,
    )
    settings = RunnableConfig(recursion_limit=100, configurable={"thread_id": "1"})
    asked: Any = {"messages": [HumanMessage(config.instruction)]}
    while asked is not None:
        update, asked = asked, None
        for part in agent.stream(update, settings, stream_mode="updates"):
            for node, change in part.items():
                if node == "__interrupt__":
                    asked = Command(resume={"decisions": [decide(call) for call in change[0].value["action_requests"]]})
                    continue
                for message in (change or {}).get("messages", []):
                    print(f"{message.type:5} {message.text}", flush=True)
    return 0


def main(config: Config) -> int:
    return exit_code(lambda: carry_out(config))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
