"""A plan as a LangChain Runnable, streamed while it is carried out.

python examples/langchain_plan.py "throw away the apple"
python examples/langchain_plan.py "I am thirsty" --propose                      # the local model talks
python examples/langchain_plan.py "I am thirsty" --url http://gpu-box:8000 --model Qwen/Qwen3-8B-Base   # vLLM
python examples/langchain_plan.py "I am thirsty" --chat openai:gpt-5            # pip install 'saycan-qt[chat]'
python examples/langchain_plan.py "I am thirsty" --chat http://gpu-box:8000 --model Qwen/Qwen3-8B       # it only chats
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from kitchen import exit_code, kitchen

from planners.langchain import runnable_plan
from planners.saycan import Decision, SayCanConfig
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.language import NONE, LanguageConfig, load_language, planner_of


@dataclass(frozen=True)
class Config:
    instruction: Annotated[str, tyro.conf.Positional] = "bring me a snack"
    seed: int = 0  # which kitchen of symbols
    server: str = ""  # instead of a kitchen of symbols: a skill server that runs ...
    robot: str = ""  # ... and a robot
    propose: bool = False  # the local model proposes steps instead of scoring them
    url: str = ""  # a server that scores; its key, if it wants one, is taken from LANGUAGE_SERVER_KEY
    model: str = ""  # what that server calls the model
    chat: str = ""  # a chat model, as langchain's init_chat_model names it, or the URL of a server that only chats


def carry_out(config: Config) -> int:
    here = kitchen(config.seed, config.server, config.robot)
    adapter = NONE if config.propose else ""  # tuned on plans alone, it has one idea where eight are wanted
    chosen = LanguageConfig(model=config.url, served=config.model, adapter=adapter, chat=config.chat)
    language = load_language(chosen, kitchen_language(), here.skills)
    kind = "proposal" if config.propose else "saycan"
    planner = planner_of(kind, language, here.skills, SayCanConfig())
    finished = False
    for [event] in runnable_plan(planner, here, here).stream(config.instruction):
        if isinstance(event, Decision):
            best = event.candidates[0]
            print(event.refusal.reason if event.refusal else f"{best.skill.text}  ({best.score:.2f})", flush=True)
            finished = event.done and not event.refusal and not event.stuck
        else:
            print(f"    {event.outcome.status.value} {event.outcome.message}", flush=True)
    return 0 if finished else 1


def main(config: Config) -> int:
    return exit_code(lambda: carry_out(config))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
