"""A plan as a LangChain Runnable, streamed while it is carried out.

python examples/langchain_plan.py "throw away the apple"
python examples/langchain_plan.py "I am thirsty" --propose                      # the local model talks
python examples/langchain_plan.py "I am thirsty" --url http://gpu-box:8000 --model Qwen/Qwen3-8B-Base   # vLLM
python examples/langchain_plan.py "I am thirsty" --chat openai:gpt-5            # pip install langchain-openai
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro
from kitchen import kitchen
from langchain.chat_models import init_chat_model

from planners.langchain import runnable_plan
from planners.proposal import ChatProposer, ProposalPlanner, SampledProposer
from planners.saycan import Decision, SayCanPlanner
from planners.weights import text_embedder
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.language import NONE, LanguageConfig, load_language


@dataclass(frozen=True)
class Config:
    instruction: Annotated[str, tyro.conf.Positional] = "bring me a snack"
    seed: int = 0  # which kitchen of symbols
    server: str = ""  # instead of a kitchen of symbols: a skill server that runs ...
    robot: str = ""  # ... and a robot
    propose: bool = False  # the local model proposes steps instead of scoring them
    url: str = ""  # a server that scores; its key, if it wants one, is taken from LANGUAGE_SERVER_KEY
    model: str = ""  # what that server calls the model
    chat: str = ""  # a chat model that proposes, as langchain's init_chat_model names it


def main(config: Config) -> int:
    here = kitchen(config.seed, config.server, config.robot)
    if config.chat:
        prompt = kitchen_language().prompt(text_embedder())
        planner: SayCanPlanner = ProposalPlanner(
            ChatProposer(init_chat_model(config.chat), prompt), prompt, here.skills
        )
    else:
        adapter = NONE if config.propose else ""  # tuned on plans alone, it has one idea where eight are wanted
        language = load_language(LanguageConfig(config.url, config.model, adapter), kitchen_language(), here.skills)
        if config.propose:
            proposer = SampledProposer(language.scorer, language.prompt)
            planner = ProposalPlanner(proposer, language.prompt, here.skills)
        else:
            planner = SayCanPlanner(language.scorer, language.prompt, here.skills)
    finished = False
    for [event] in runnable_plan(planner, here, here).stream(config.instruction):
        if isinstance(event, Decision):
            best = event.candidates[0]
            print(event.refusal.reason if event.refusal else f"{best.skill.text}  ({best.score:.2f})", flush=True)
            finished = event.done and not event.refusal
        else:
            print(f"    {event.outcome.status.value} {event.outcome.message}", flush=True)
    return 0 if finished else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
