"""Proposal: the language model says what to do next, the nearest skills are looked up, and the affordance picks.

    planner = ProposalPlanner(SampledProposer(scorer, prompt), prompt, library)
    planner = ProposalPlanner(ChatProposer(init_chat_model("openai:gpt-5"), prompt), prompt, library)

For models that talk but do not tell how likely a given text is [Q-Transformer, app. G]. Whatever a model says, only
skills of the library come out.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from planners.prompts import CANNOT, Begun, Prompt
from planners.saycan import DONE, LONGEST, Decision, Refusal, SayCanConfig, SayCanPlanner, Step, TooLong, one_at_a_time
from skills.library import Skill
from skills.rules import Known

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from torch import Generator

log = logging.getLogger(__name__)

LONGEST_LINE, TOLD = 200, 60  # letters of a proposal that are read, and that a refusal repeats
UNSAID = 1e-30  # share of a skill that nobody proposed
MARKS = re.compile(r"^\s*(?:[-*•]|\d+[.):])?\s*[\"'`]*(.*?)[\"'`.\s]*$")  # what stands around a line of a list
CHAT = """You choose the next step of {about}. Below are examples of instructions and the steps that \
carried them out, then the instruction at hand and the steps done so far. Answer with up to {k} different next steps, \
one a line, the most sensible first, in the words of the examples, without numbers or reasons. When nothing is left to \
do, answer with "done" alone."""


class Proposer(Protocol):
    """A language model that says what it would do next."""

    def propose(
        self,
        instruction: str,
        steps_done: Sequence[str],
        feasible: Collection[str],
        k: int,
        known: Known | None = None,
    ) -> list[str]:
        """Up to k next steps in free words; one that is said several times counts as often.

        feasible: texts of skills that are possible now by rule; known: the scene; see Prompt.build."""
        ...


@dataclass(frozen=True)
class ProposalConfig:
    """How proposals are asked for and understood."""

    k: int = 8  # proposals for each step
    similarity: float = 0.75  # cosine between a proposal's and a skill's embedding from which the two mean the same
    votes: bool = True  # weigh a skill by its share of the proposals; False: the affordance alone picks, as in app. G
    tries: int = 2  # how often the model is asked while nothing that it says is a feasible skill


@dataclass(frozen=True)
class Proposal:
    """What the model said, and how it was understood."""

    text: str
    skill: Skill | None  # None: no skill means that; the proposal is dropped
    similarity: float  # to the nearest skill, in [-1, 1]


@dataclass(frozen=True)
class ProposalDecision(Decision):
    """A decision, and the proposals that led to it. It refuses where nothing proposed is possible."""

    proposals: tuple[Proposal, ...] = ()


class ProposalPlanner(SayCanPlanner):
    """Chooses the next skill for an instruction from what a language model proposes.

    It is the SayCan planner with shares of proposals in place of likelihoods: failures, repeats, "done" and the
    affordances count as they do there.
    """

    def __init__(
        self,
        proposer: Proposer,
        prompt: Prompt,
        skills: Iterable[Skill],
        config: SayCanConfig | None = None,
        proposals: ProposalConfig | None = None,
    ) -> None:
        self._votes = _Votes()
        config = replace(config or SayCanConfig(), preselect=0)  # what is proposed may be any skill
        super().__init__(self._votes, prompt, skills, config)
        self.proposer, self.proposals = proposer, proposals or ProposalConfig()
        if self.config.normalise != "sum" or self.config.without == "language" or self.config.nearness:
            raise ValueError(
                "proposals are counted: likelihoods to normalise, to weigh beside nearness, or to go without, are "
                "SayCanPlanner's"
            )
        if self.proposals.k < 1 or self.proposals.tries < 1:
            raise ValueError("a proposal planner asks for at least one proposal, at least once")
        self._said = {_plain(words): skill for skill in self.skills for words in (skill.name, skill.text)}
        self._said_vectors = prompt.embed(list(self._said))

    @one_at_a_time
    def step(
        self,
        instruction: str,
        history: Sequence[Step],
        affordances: Mapping[str, float],
        known: Known | None = None,
        begun: Begun | None = None,
    ) -> ProposalDecision:
        """The next skill. A failed step is not shown to the language model, so that it proposes it anew."""
        started = time.perf_counter()
        self.prompt.take(begun)
        possible = [s for s in self.skills if affordances.get(s.name, 0.0) >= self.config.affordance_floor]
        feasible = {skill.text for skill in possible if not skill.learned}
        steps_done = [step.skill.text for step in history if step.outcome.succeeded]
        proposals: list[Proposal] = []
        if not (self.config.refuse and len(instruction) > LONGEST):  # refused below, unread
            for _ in range(self.proposals.tries):
                said = self.proposer.propose(instruction, steps_done, feasible, self.proposals.k, known)
                proposals += self.understand(said[: self.proposals.k])
                if any(proposal.skill in possible or _is_done(proposal.skill) for proposal in proposals):
                    break
        self._votes.count(proposals, equal=not self.proposals.votes)
        decision = super().step(instruction, history, affordances, known, begun)
        chosen = decision.because or self._votes.counts[decision.skill.text]
        if decision.refusal is None and not chosen:
            said = [text for proposal in proposals if (text := shorten(proposal.text, TOLD, placeholder=" ..."))]
            words = ", ".join(f"“{text}”" for text in dict.fromkeys(said))
            refusal = Refusal(f"nothing that the language model proposes is possible now: {words or 'it is silent'}")
            rows = [replace(row, language_score=None, score=0.0) for row in decision.candidates]
            rows.sort(key=lambda row: not _is_done(row.skill))
            decision = replace(decision, candidates=tuple(rows), refusal=refusal)
        decided = {field.name: getattr(decision, field.name) for field in fields(decision)}
        decided["seconds"] = time.perf_counter() - started
        return ProposalDecision(**decided, proposals=tuple(proposals))

    def understand(self, said: Sequence[str]) -> list[Proposal]:
        """Each proposal's nearest skill by sentence embedding, if it is near enough."""
        lines = [_plain(text[:LONGEST_LINE]) for text in said]
        near = self.prompt.embed(lines) @ self._said_vectors.T if lines else []
        skills, proposals = list(self._said.values()), []
        for line, row in zip(lines, near, strict=True):
            best = int(row.argmax())
            skill = self._said.get(line) or (skills[best] if row[best] >= self.proposals.similarity else None)
            proposals.append(Proposal(line, skill, float(row[best])))
            if skill is None:
                log.info(
                    "dropped the proposal %r: the nearest skill, %r, has similarity %.2f of the %.2f asked for",
                    *(line, skills[best].name, row[best], self.proposals.similarity),
                )
        return proposals


class _Votes:
    """A Scorer: how often each skill was proposed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # by skill text
        self._of = 1

    def count(self, proposals: Sequence[Proposal], equal: bool) -> None:
        meant = [proposal.skill.text if proposal.skill else proposal.text for proposal in proposals]
        unknown = {proposal.text for proposal in proposals if proposal.skill is None} - {CANNOT}
        self.counts = Counter(text for text in meant if text not in unknown)
        if equal:
            self.counts = Counter(set(self.counts))
        self._of = max(1, self.counts.total() if equal else len(proposals))

    def score(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """Logarithms of the shares (N,); of what was not proposed, one that counts only where nothing was."""
        counts = np.array([self.counts[candidate.strip()] for candidate in candidates], float)
        return np.log(np.maximum(counts / self._of, UNSAID))


def _is_done(skill: Skill | None) -> bool:
    return skill is not None and skill.name == DONE


def _plain(text: str) -> str:
    """A line without a list's mark, quotes, case, full stop, or halves of letters, which no tokenizer takes."""
    text = " ".join(text.encode(errors="replace").decode().split())
    found = MARKS.match(text)
    return (found[1] if found else text).casefold()


class ChatProposer:
    """Proposals of any LangChain chat model, in one call. What is possible by rule is told to it. Raises RemoteError
    where it does not answer."""

    def __init__(self, model: BaseChatModel, prompt: Prompt) -> None:
        self.model, self.prompt = model, prompt

    def propose(
        self,
        instruction: str,
        steps_done: Sequence[str],
        feasible: Collection[str],
        k: int,
        known: Known | None = None,
    ) -> list[str]:
        from langchain_core.messages import HumanMessage, SystemMessage

        from planners.servers.chat import ask, spoken

        shown = self.prompt.build(instruction, steps_done, feasible, known)
        if feasible:
            shown += "\n\nAmong what is possible now: " + ", ".join(sorted(feasible))
        answer = ask(self.model, [SystemMessage(CHAT.format(k=k, about=self.prompt.about)), HumanMessage(shown)])
        return [line for line in spoken(str(answer.text)).splitlines() if line.strip()][:k]


class SampledProposer:
    """Proposals of a local model: k continuations of the prompt that SayCan scores, drawn at random."""

    def __init__(
        self,
        scorer: LocalModel,
        prompt: Prompt,
        temperature: float = 0.7,
        max_tokens: int = 24,  # skill texts are shorter, the longest seen had 20
        seed: int = 0,
    ) -> None:
        import torch

        self.scorer, self.prompt = scorer, prompt
        self.temperature, self.max_tokens = temperature, max_tokens
        self._generator = torch.Generator().manual_seed(seed)

    def propose(
        self,
        instruction: str,
        steps_done: Sequence[str],
        feasible: Collection[str],
        k: int,
        known: Known | None = None,
    ) -> list[str]:
        shown = self.prompt.build(instruction, steps_done, feasible, known)
        *_, texts = generate(self.scorer, shown, self.max_tokens, ["\n"], k, self.temperature, self._generator)
        return [text for text in texts if text.strip()]


class LocalModel(Protocol):
    """What a LanguageScorer offers besides scores."""

    model: Any  # a causal language model of transformers
    tokenizer: Any


def generate(
    local: LocalModel,
    prompt: str,
    max_tokens: int,  # fewer where the model reads no more
    stop: Sequence[str] = (),  # a text ends before the first of these
    count: int = 1,  # texts, which share one pass over the prompt
    temperature: float = 0.0,  # 0: always the likeliest token
    generator: Generator | None = None,
) -> Iterator[list[str]]:
    """Continue a prompt: yields all `count` texts as far as they are, after each token."""
    import torch  # seconds, and a chat model needs none of it

    from planners.language import special_first
    from planners.reading.continuing import Continuation
    from planners.reading.passes import most_tokens

    ids = special_first(local.tokenizer) + local.tokenizer(prompt, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError("the prompt is empty; there must be at least one token to continue")
    if len(ids) > (room := most_tokens(local.model)):
        raise TooLong(f"a prompt of {len(ids)} tokens, of which the model reads at most {room}")
    max_tokens = int(min(max_tokens, room - len(ids) + 1))  # the last one is not read
    ends = local.model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends]) | {local.tokenizer.eos_token_id}
    continuation = Continuation(local.model, ids, count)
    logits = continuation.begin()
    said: list[list[int]] = [[] for _ in range(count)]
    over = [False] * count
    texts = [""] * count
    for number in range(max_tokens):
        if temperature > 0:
            chosen = torch.multinomial((logits.float().cpu() / temperature).softmax(-1), 1, generator=generator)[:, 0]
        else:
            chosen = logits.argmax(-1).cpu()
        for i, token in enumerate(chosen.tolist()):
            if over[i]:
                continue
            if token in ends:
                over[i] = True
                continue
            said[i].append(token)
            text = local.tokenizer.decode(said[i])
            cuts = [at for word in stop if (at := text.find(word)) >= 0]
            texts[i], over[i] = (text[: min(cuts)], True) if cuts else (text, False)
        yield list(texts)
        if all(over) or number == max_tokens - 1:
            return
        logits = continuation.go_on(chosen.tolist())
