"""Models that only chat: lettered options, chosen by how likely each letter is, as KnowNo asks [Ren et al. 2023].

    chat = ServerChat(url="http://gpu-box:8000", served="Qwen/Qwen3-8B")   # or any chat model of LangChain's
    if top := tells_letters(chat):                                  # else planners.proposal.ChatProposer(chat, prompt)
        planner = SayCanPlanner(LetteredScorer(chat, top), prompt, library, SayCanConfig(preselect=OPTIONS))

A chat model tells nobody how likely a given text is. Of its own answer's first letter many do: the candidates become
options of a question, with "none of these" as the last one.
"""

from __future__ import annotations

import re
import string
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, convert_to_openai_messages
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr, SecretStr

from planners.servers.remote import LanguageServer, Refused, RemoteError

OPTIONS = 20  # candidates in one question; their letters and that of "none of these" are told apart well
TOPS = (20, 5)  # likeliest first tokens that are asked for; some servers tell five at most
TRIES = 2  # of a question that is not answered by a letter
# What a model says to itself; where its template begins it, the answer holds only its end
THOUGHTS = re.compile(r"\A(?:(?!<think>).)*?</think>|<think>.*?(</think>|$)", re.DOTALL)
BEFORE, AFTER = " \t\n*(\"'`", ".):"  # what may stand around a letter
WORDS = re.compile(r"\w[\w'\u2019-]*\w|[AI][ \t]+[*_]*[a-z]")  # that begin with a letter: "I'm sorry", "A robot cannot"
UNTOLD = 1e-12  # probability of a letter that is not among the likeliest tokens, where those leave nothing
NONE_OF_THESE = "none of these"
ASK = """You choose the next step of {about}. Below are examples of instructions and the steps that carried them out, \
then the instruction at hand and the steps done so far. Answer with the letter of the option that should come next, \
and nothing else. "done" is right when nothing is left to do; "{none}", when no option serves the instruction."""
ALONE = "Answer with the letter alone."
PROBE = f"What is two plus two?\n\nA. nine\nB. four\nC. none of these\n\n{ALONE}"
RIGHT = "B"


class ChatError(RemoteError):
    """A chat model that does not answer: which one, why, and what to do."""


# -- a server ------------------------------------------------------------------------------------------------------


class ServerChat(BaseChatModel):
    """A model that chats behind OpenAI's interface, as vLLM, llama.cpp's server, Ollama, `transformers serve` and many
    others offer it. Raises RemoteError, in one line."""

    url: str  # "http://host:8000", with or without the "/v1" at its end
    served: str  # what the server calls the model
    api_key: SecretStr | None = None  # told to the server alone
    timeout: float = 60.0  # [s] for one answer, further tries included
    max_tokens: int = 1024  # of one answer, its thoughts included
    temperature: float | None = 0.0  # None: the server's own
    _server: LanguageServer = PrivateAttr()
    _names: dict[str, str] = PrivateAttr(default_factory=lambda: {"max_tokens": "max_tokens"})

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        key = self.api_key.get_secret_value() if self.api_key else None
        self._server = LanguageServer(self.url, self.served, key, self.timeout)

    @property
    def _llm_type(self) -> str:
        return "saycan-qt-server"

    @property
    def name_for_people(self) -> str:
        return f"{self._server.server} ({self.served})"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **options: Any,
    ) -> ChatResult:
        body = {"model": self.served, "messages": convert_to_openai_messages(messages), **options}
        body |= {"stop": stop} if stop else {}
        answer = self._ask(body, time.monotonic() + self.timeout)
        try:
            choice = answer["choices"][0]
            said, logprobs = choice["message"], choice.get("logprobs")
            text = said.get("content") or said.get("refusal") or ""
            if not isinstance(text, str):
                raise TypeError
        except (KeyError, TypeError, IndexError, AttributeError):
            raise ChatError(f"{self._server.server} does not answer as OpenAI's chat completions do") from None
        metadata = {"finish_reason": choice.get("finish_reason"), "logprobs": logprobs, "model_name": self.served}
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text, response_metadata=metadata))])

    def _ask(self, body: dict[str, Any], deadline: float) -> Any:
        """Some of OpenAI's own models call the limit of tokens otherwise, and choose their temperature themselves."""
        for _ in range(3):
            settings: dict[str, Any] = {self._names["max_tokens"]: self.max_tokens}
            settings |= {} if self.temperature is None else {"temperature": self.temperature}
            try:
                return self._server.ask("/chat/completions", body | settings, deadline)
            except Refused as refused:
                if refused.status in (400, 422) and "max_completion_tokens" in refused.said:
                    self._names["max_tokens"] = "max_completion_tokens"
                elif refused.status in (400, 422) and "temperature" in refused.said and self.temperature is not None:
                    self.temperature = None
                else:
                    raise self._explained(refused) from None
        raise ChatError(f"{self._server.server} refuses every way to ask it")

    def _explained(self, refused: Refused) -> RemoteError:
        match refused.status:
            case 401 | 403:
                key = "refuses the API key" if self.api_key else "wants an API key"
                return ChatError(f"{self._server.server} {key}: {refused.said}")
            case 404 | 405:
                models = self._server.models()
                if models and self.served not in models:
                    return ChatError(f"{self._server.server} has no model {self.served!r}; it has: {', '.join(models)}")
                return ChatError(f"{self._server.server} has no chat completions for {self.served!r}: {refused.said}")
        return refused


# -- lettered options ----------------------------------------------------------------------------------------------


class LetteredScorer:
    """A chat model that tells how likely each letter is, as a Scorer: the candidates are options of a question.

    More than OPTIONS candidates become several questions; the likelihoods of each count what is left for "none of
    these", so that they are comparable. An answer that is none is asked for again, then ChatError is raised.
    """

    def __init__(self, chat: BaseChatModel, top: int, about: str = "a robot") -> None:
        """top: how many of the likeliest tokens it tells, see `tells_letters`."""
        self.chat, self.top, self.about = chat, top, about

    def score(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """Log-likelihoods (N,): the logarithms of the probabilities of the candidates' letters. Of a question's, these
        and that of "none of these" add up to 1."""
        scores = np.zeros(len(candidates), np.float32)
        for start in range(0, len(candidates), OPTIONS):
            some = [candidate.strip() for candidate in candidates[start : start + OPTIONS]]
            scores[start : start + OPTIONS] = self._letters(prompt, some)[:-1]
        return scores

    def _letters(self, prompt: str, options: Sequence[str]) -> np.ndarray:
        """Logarithms (options + 1,) of the probabilities of the letters, the last being that of none of these."""
        letters = string.ascii_uppercase[: len(options) + 1]
        listed = [f"{letter}. {text}" for letter, text in zip(letters, (*options, NONE_OF_THESE), strict=True)]
        shown, _, number = prompt.rpartition("\n")
        question = "\n".join([shown, "", f"Options for step {number.strip(' .')}:", *listed, "", ALONE])
        asked = [SystemMessage(ASK.format(about=self.about, none=NONE_OF_THESE)), HumanMessage(question)]
        for _ in range(TRIES):
            answer = ask(self.chat, asked, self.top)
            if (told := letter_logprobs(answer.response_metadata.get("logprobs"), letters)) is not None:
                return told
        said = " ".join(spoken(str(answer.text)).split())[:100]
        raise ChatError(f"{called(self.chat)} answers no letter of {letters[0]} to {letters[-1]}, but {said!r}")


def letter_logprobs(logprobs: Any, letters: str) -> np.ndarray | None:
    """Logarithms (letters,) of each letter's probability among the letters, from OpenAI's form of log-probabilities;
    None where the answer's first word, after what the model says to itself, is no letter."""
    try:
        tokens = [
            (str(one["token"]), {str(top["token"]): float(top["logprob"]) for top in one.get("top_logprobs") or ()})
            for one in (logprobs or {})["content"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    text, at = "".join(token for token, _ in tokens), 0
    start = len(text) - len(THOUGHTS.sub("", text))  # thoughts stand before the answer
    for token, top in tokens:
        if at >= start and token.strip(BEFORE):
            chances = np.zeros(len(letters))
            for word, logprob in top.items():
                if (letter := word.strip(BEFORE + AFTER)) in set(letters):
                    chances[letters.index(letter)] += np.exp(logprob)
            said = token.strip(BEFORE + AFTER) in set(letters) and not WORDS.match(text[at:].lstrip(BEFORE))
            if not said or not chances.any():
                return None
            told = np.exp(list(top.values()))
            most = min(told.min(), (1 - told.sum()) / max(1, (chances == 0).sum()))
            chances = np.maximum(chances, max(most, UNTOLD))
            return np.log(chances / chances.sum())
        at += len(token)
    return None


def spoken(text: str) -> str:
    """What a model says, less what it says to itself."""
    return THOUGHTS.sub("", text).lstrip()


def tells_letters(chat: BaseChatModel) -> int:
    """How many of the likeliest tokens a chat model tells; 0 where it tells none, or cannot choose the right letter
    itself. Raises RemoteError where it does not answer at all."""
    question: list[BaseMessage] = [HumanMessage(PROBE)]
    for top in TOPS:
        try:
            answer = ask(chat, question, top)
        except RemoteError:
            continue
        told = letter_logprobs(answer.response_metadata.get("logprobs"), "ABC")
        return top if told is not None and "ABC"[int(told.argmax())] == RIGHT else 0
    ask(chat, question)  # raises, if the log-probabilities were not to blame
    return 0


def ask(chat: BaseChatModel, messages: Sequence[BaseMessage], top: int = 0) -> AIMessage:
    """A chat model's answer, and the log-probabilities of its `top` likeliest tokens, if any. Raises RemoteError, in
    one line, whatever its library raises."""
    settings: dict[str, Any] = {"logprobs": True, "top_logprobs": top} if top else {}
    try:
        return chat.invoke(list(messages), **settings)
    except RemoteError:
        raise
    except Exception as error:  # somebody else's library
        reason = " ".join(str(error).split())[:300]
        raise ChatError(f"{called(chat)}: {type(error).__name__}: {reason}") from None


def called(chat: BaseChatModel) -> str:
    """What people know a chat model by."""
    if isinstance(chat, ServerChat):
        return chat.name_for_people
    named: Mapping[str, Any] = chat.model_dump(include={"model", "model_name"})
    return str(next(filter(None, named.values()), chat.get_name()))
