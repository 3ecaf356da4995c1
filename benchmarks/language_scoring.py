"""What it takes to score every skill's text after a prompt, three ways, and to plan one step.

    python benchmarks/language_scoring.py                  # 100 candidates after 400 tokens, ours up to 1,000, one step
    python benchmarks/language_scoring.py --threads 2 --rounds 5

The three ways take turns in one process, on the same model, weights and number of threads: a plain loop (a pass over
prompt and candidate for each), full prompts in padded batches, and ours, the packed pass over the candidates' token
trie, with the prompt new and with it already read, as at every step of a plan but the first. All of them score every
candidate and must agree; a last row gives hopeless candidates up after a glance, as the planner does. The loop and the
batches are timed on some of the candidates, and their time is stated for all.

The step is the shipped models' own: affordances of 100 skills from one camera image, and the planner's decision over
them, whatever is feasible.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from planners.language import NEGLIGIBLE, LanguageScorer
from planners.prompts import Prompt
from planners.saycan import SayCanConfig, SayCanPlanner, Step
from planners.weights import text_embedder
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.kitchen.robot import KitchenRobot
from saycan_qt.learning import checkpoint
from skills.connective import connective_affordance
from skills.library import Skill, SkillLibrary
from skills.types import Outcome, Status

AGREE = 1e-3  # largest difference of log-likelihoods in float32


@dataclass(frozen=True)
class Config:
    candidates: int = 100
    prompt_tokens: int = 400
    growing: tuple[int, ...] = (10, 30, 100, 300, 1000)  # candidates, for ours alone
    looped: int = 10  # candidates that the loop is timed on in each round
    batch: int = 25  # full prompts in a batch; one batch is timed in each round
    rounds: int = 3
    threads: int = 1
    float32: bool = False  # even where bfloat16 is fast
    step: bool = True  # time a whole planning step too
    instruction: str = "bring me a snack"
    out: Path | None = None  # results as JSON


def candidate_texts(count: int) -> list[str]:
    """The kitchen's texts, evenly spread; beyond them, of further drawers, so that beginnings are shared as before."""
    texts = [skill.text for skill in SkillLibrary.load()]
    things = SkillLibrary.load().objects
    number = 0
    while len(texts) < count:
        texts += [f"place the {thing} into the drawer number {number}" for thing in things]
        number += 1
    chosen = np.linspace(0, len(texts) - 1, count).round().astype(int)
    return [f" {texts[i]}\n" for i in chosen]


def prompt_of(scorer: LanguageScorer, prompt: Prompt, tokens: int) -> str:
    """Examples, then an instruction; `tokens` long but for the examples that do not fit."""
    tail = "Instruction: bring me something to eat\n1."
    text = tail
    for example in prompt.examples[:: len(prompt.examples) // 60]:
        steps = "".join(f"{number}. {step}\n" for number, step in enumerate(example.plan, 1))
        longer = f"Instruction: {example.instruction}\n{steps}\n{text}"
        if len(scorer.tokenizer(longer).input_ids) > tokens:
            continue
        text = longer
    return text


def one_by_one(scorer: LanguageScorer, prompt: str, candidates: Sequence[str]) -> np.ndarray:
    """A pass over prompt and candidate for each of them."""
    return np.concatenate([batched(scorer, prompt, [candidate], 1) for candidate in candidates])


def batched(scorer: LanguageScorer, prompt: str, candidates: Sequence[str], size: int) -> np.ndarray:
    """Full prompts, padded to the longest of each batch."""
    start = len(scorer.tokenizer(prompt).input_ids)
    scores = []
    for first in range(0, len(candidates), size):
        rows = [scorer.tokenizer(prompt + text).input_ids for text in candidates[first : first + size]]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        with torch.inference_mode():
            kept = length - start + 1  # logits of the candidates' tokens alone
            logits = scorer.model(ids, attention_mask=mask, logits_to_keep=kept).logits[:, :-1].float()
            chosen = logits.log_softmax(-1).gather(2, ids[:, start:, None])[:, :, 0]
        scores.append((chosen * mask[:, start:]).sum(1).numpy())
    return np.concatenate(scores)


def packed(scorer: LanguageScorer, prompt: str, candidates: Sequence[str]) -> np.ndarray:
    """Ours, the prompt not read before."""
    scorer.score("Something else\n", [" done\n"])
    return scorer.score(prompt, candidates)


def glancing(scorer: LanguageScorer, prompt: str, candidates: Sequence[str]) -> np.ndarray:
    """Ours as the planner asks: the prompt read before, hopeless candidates given up."""
    scorer.negligible = NEGLIGIBLE
    try:
        return scorer.score(prompt, candidates)
    finally:
        scorer.negligible = 0


def spread(candidates: Sequence[str], count: int) -> list[str]:
    """At most so many of them, evenly spread."""
    return list(dict.fromkeys(candidates[i] for i in np.linspace(0, len(candidates) - 1, count).round().astype(int)))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def compare(scorer: LanguageScorer, prompt: str, config: Config) -> dict[str, Any]:
    """Median seconds of each way for all candidates, taking turns."""
    candidates = candidate_texts(config.candidates)
    few, some = spread(candidates, config.looped), spread(candidates, config.batch)
    ways: dict[str, tuple[Callable[[], np.ndarray], float]] = {  # and what share of the candidates is scored
        "plain loop": (lambda: one_by_one(scorer, prompt, few), len(few) / len(candidates)),
        "batched full prompts": (lambda: batched(scorer, prompt, some, config.batch), len(some) / len(candidates)),
        "ours, new prompt": (lambda: packed(scorer, prompt, candidates), 1.0),
        "ours, prompt read before": (lambda: scorer.score(prompt, candidates), 1.0),
        "... and hopeless ones given up": (lambda: glancing(scorer, prompt, candidates), 1.0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, np.ndarray] = {}
    for _ in range(config.rounds):
        for name, (call, share) in ways.items():
            taken, scores[name] = timed(call)
            seconds[name].append(taken / share)
    at = {text: float(score) for text, score in zip(candidates, scores["ours, new prompt"], strict=True)}
    checked = [*zip(few, scores["plain loop"], strict=True), *zip(some, scores["batched full prompts"], strict=True)]
    off = max(abs(at[text] - score) for text, score in checked)
    if config.float32:
        assert off < AGREE, f"the ways differ by {off}"
    return {"seconds": {name: statistics.median(taken) for name, taken in seconds.items()}, "largest difference": off}


def grow(scorer: LanguageScorer, prompt: str, config: Config) -> dict[int, float]:
    """Median seconds of ours with the prompt read before, for more and more candidates."""
    found = {}
    for count in config.growing:
        candidates = candidate_texts(count)
        scorer.score(prompt, candidates[:1])
        found[count] = statistics.median(
            timed(lambda c=candidates: scorer.score(prompt, c))[0] for _ in range(config.rounds)
        )
    return found


def whole_step(prompt: Prompt, config: Config) -> dict[str, Any]:
    """Median seconds of affordances and decision, as a run makes them, at a plan's first three steps."""
    library = SkillLibrary.load()
    always = [s for s in library if not s.learned]
    learned = [s for s in library if s.learned]
    spread = np.linspace(0, len(learned) - 1, config.candidates - len(always)).round().astype(int)
    skills: list[Skill] = [*always, *(learned[i] for i in spread)]
    critic, robot = checkpoint.load("affordance"), KitchenRobot(0)
    planner = SayCanPlanner(LanguageScorer(), prompt, skills, SayCanConfig())
    history: list[Step] = []
    rows = []
    for repeat in range(config.rounds + 1):  # the first warms up
        history.clear()
        for _ in range(3):
            observation = robot.observe()

            def judged(observation: Any = observation) -> dict[str, float]:
                names = [s.name for s in skills if s.learned]
                values = dict(zip(names, critic.value([observation], names).tolist(), strict=True))
                return values | {s.name: connective_affordance(s, observation) for s in always}

            affordance, affordances = timed(judged)
            language, decision = timed(lambda a=affordances: planner.step(config.instruction, history, a))
            history.append(Step(decision.skill, Outcome(Status.SUCCEEDED)))  # the robot stays: only time is measured
            scored = sum(row.language_score is not None for row in decision.candidates)
            if repeat:
                rows.append({"step": len(history), "affordance": affordance, "language": language, "scored": scored})
    return {
        f"step {number}": {
            key: statistics.median(row[key] for row in rows if row["step"] == number)
            for key in ("affordance", "language", "scored")
        }
        for number in (1, 2, 3)
    }


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    scorer = LanguageScorer(dtype=torch.float32 if config.float32 else None, negligible=0)
    prompt = kitchen_language().prompt(text_embedder())
    text = prompt_of(scorer, prompt, config.prompt_tokens)
    tokens = len(scorer.tokenizer(text).input_ids)
    print(
        f"{config.candidates} candidates after {tokens} tokens, {config.threads} thread(s), {scorer.dtype}", flush=True
    )
    found: dict[str, Any] = {"prompt_tokens": tokens, **compare(scorer, text, config)}
    loop = found["seconds"]["plain loop"]
    for name, seconds in found["seconds"].items():
        print(f"  {name:30s} {seconds:8.3f} s   {loop / seconds:6.1f} times the loop", flush=True)
    print(f"  largest difference of log-likelihoods {found['largest difference']:.1e}")
    found["growing"] = grow(scorer, text, config)
    for count, seconds in found["growing"].items():
        print(f"  ours, {count:5d} candidates {seconds:8.3f} s", flush=True)
    if config.step:
        found["planning step"] = whole_step(prompt, config)
        print(f"one planning step over {config.candidates} skills, shipped models")
        for name, row in found["planning step"].items():
            print(f"  {name}: affordance {row['affordance']:.3f} s + language {row['language']:.3f} s "
                  f"= {row['affordance'] + row['language']:.3f} s ({row['scored']:.0f} skills scored)")  # fmt: skip
    if config.out:
        config.out.write_text(json.dumps(found | {"threads": config.threads}, indent=1, default=float))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
