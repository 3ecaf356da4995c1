"""The planner as a LangChain Runnable: {"instruction", "history", "affordances"} in, a Decision out.

chain = RunnablePlanner(planner) | (lambda decision: decision.skill.name)
chain.invoke({"instruction": "bring me a coke can", "history": [], "affordances": {"find coke can": 1.0}})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from langchain_core.runnables import Runnable, RunnableConfig

from planners.saycan import Decision, SayCanPlanner, Step


class PlannerInput(TypedDict):
    """What one decision needs."""

    instruction: str
    affordances: Mapping[str, float]  # skill name -> [0, 1]
    history: NotRequired[Sequence[Step]]  # steps executed so far, oldest first


class RunnablePlanner(Runnable[PlannerInput, Decision]):
    """One SayCan decision for each invocation."""

    def __init__(self, planner: SayCanPlanner) -> None:
        self.planner = planner

    def invoke(self, input: PlannerInput, config: RunnableConfig | None = None, **kwargs: Any) -> Decision:
        return self._call_with_config(self._decide, input, config)

    def _decide(self, asked: PlannerInput) -> Decision:
        return self.planner.step(asked["instruction"], asked.get("history", ()), asked["affordances"])
