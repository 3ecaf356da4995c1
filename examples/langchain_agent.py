"""A LangChain agent whose tools are the robot's skills.

python examples/langchain_agent.py "throw away the apple"                       # the planner is the agent's model
python examples/langchain_agent.py "throw away the apple" --ask                 # you approve every skill
python examples/langchain_agent.py "throw away the apple" --model openai:gpt-5  # pip install langchain-openai
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from kitchen import kitchen
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from planners.langchain import PlannerModel, observe_tool, skill_tools
from planners.saycan import SayCanPlanner
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.language import LanguageConfig, load_language


@dataclass(frozen=True)
class Config:
    instruction: Annotated[str, tyro.conf.Positional] = "bring me a snack"
    seed: int = 0  # which kitchen of symbols
    server: str = ""  # instead of a kitchen of symbols: a skill server that runs ...
    robot: str = ""  # ... and a robot
    model: str = ""  # a chat model that calls tools, as langchain's init_chat_model names it; by default the planner
    ask: bool = False  # ask before every skill


def main(config: Config) -> int:
    here = kitchen(config.seed, config.server, config.robot)
    tools = skill_tools(here.skills, here)
    model: Any = config.model
    if not model:
        language = load_language(LanguageConfig(), kitchen_language(), here.skills)
        planner = SayCanPlanner(language.scorer, language.prompt, here.skills)
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
                    answer = input(f"{change[0].value['action_requests'][0]['name']}: go on? [y/n] ")
                    decision = "approve" if answer.strip().lower().startswith("y") else "reject"
                    asked = Command(resume={"decisions": [{"type": decision}]})
                    continue
                for message in (change or {}).get("messages", []):
                    print(f"{message.type:5} {message.text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
