"""Scoring through HTTP: a server with the real model that answers as vLLM does, and servers that misbehave."""

import threading

import numpy as np
import pytest
import torch
from language_servers import serving

from planners.language import LanguageScorer
from planners.servers import remote
from planners.servers.remote import UNTOLD, CannotScore, RemoteError, RemoteScorer, Row, _cuts

KEY = "sk-very-secret"
PROMPT = "Instruction: bring me an apple\n1. find the apple\n2. pick up the apple\n\nInstruction: open it\n1."
CANDIDATES = [" find the apple\n", " find the orange\n", " open the top drawer\n", " bring it to you\n", " done\n"]


@pytest.fixture(scope="module")
def local():
    return LanguageScorer(dtype=torch.float32, negligible=0)


def vllm(scorer, change=lambda values: values, least=0):
    """Answers in vLLM's format, from the real model; `least`: the smallest max_tokens that is accepted."""

    def next_token(index, text, count):
        with torch.inference_mode():
            logits = (
                scorer.model(torch.tensor([scorer.tokenizer(text).input_ids])).logits[0, -1].double().log_softmax(-1)
            )
        top = {scorer.tokenizer.decode([i]): logits[i].item() for i in logits.topk(count).indices.tolist()}
        return {"index": index, "text": next(iter(top)), "logprobs": {"top_logprobs": [top]}}

    def row(index, text, max_tokens):
        ids = scorer.tokenizer(text).input_ids
        with torch.inference_mode():
            logits = scorer.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        values = [None, *(logits[i, token].item() for i, token in enumerate(ids[1:]))]
        if max_tokens:
            ids, values = [*ids, int(logits[-1].argmax())], [*values, logits[-1].max().item()]
        tokens = [scorer.tokenizer.decode([token]) for token in ids]
        offsets = np.cumsum([0, *map(len, tokens[:-1])]).tolist()
        logprobs = {"tokens": tokens, "token_logprobs": change(values), "text_offset": offsets, "top_logprobs": None}
        said = text + (tokens[-1] if max_tokens else "")
        return {"index": index, "text": said, "logprobs": logprobs, "finish_reason": "length"}

    def answer(path, request, headers):
        if path != "/v1/completions":
            return 200, {"object": "list", "data": [{"id": "small"}]}
        if request["max_tokens"] < least:
            return 400, {"error": {"message": "max_tokens must be at least 1"}}
        texts = enumerate(request["prompt"])
        if not request.get("echo"):
            return 200, {"choices": [next_token(index, text, request["logprobs"]) for index, text in texts][::-1]}
        return 200, {"choices": [row(index, text, request["max_tokens"]) for index, text in texts][::-1]}

    return answer


@pytest.mark.parametrize("least", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_remote_scores_equal_local_ones_also_where_no_token_may_be_left_unsaid(local, least):
    with serving(vllm(local, least=least)) as url:
        scorer = RemoteScorer(url, "small", batch=4, negligible=0)
        np.testing.assert_allclose(scorer.score(PROMPT, CANDIDATES), local.score(PROMPT, CANDIDATES), atol=1e-3)
        assert (scorer.count_tokens(PROMPT, CANDIDATES) == local.count_tokens(PROMPT, CANDIDATES)).all()


def test_the_hopeless_are_given_up_and_all_others_scored_without_reading_the_prompt_for_each(local):
    asked, answer = [], vllm(local)

    def counting(path, request, headers):
        asked.append(request)
        return answer(path, request, headers)

    with serving(counting) as url:
        scorer, asked[:] = RemoteScorer(url, "small"), []
        scores, exact = scorer.score(PROMPT, CANDIDATES), local.score(PROMPT, CANDIDATES)
        told, read = np.isfinite(scores), [request for request in asked if request.get("echo")]
        np.testing.assert_allclose(scores[told], exact[told], atol=1e-3)
        assert told[0] and (exact[~told] < exact.max() + np.log(UNTOLD)).all()
        lines, *rest = read  # one text of all candidates, and those that were not among the likeliest
        assert len(lines["prompt"]) == 1 and sum(len(request["prompt"]) for request in rest) < len(CANDIDATES)
        assert len(asked) <= 6
        assert (scorer.count_tokens(PROMPT, CANDIDATES) == local.count_tokens(PROMPT, CANDIDATES)).all()


@pytest.mark.slow
def test_a_server_that_tells_no_next_tokens_reads_every_candidate(local):
    answer = vllm(local)

    def reads(path, request, headers):
        return answer(path, request, headers) if not request or request.get("echo") else (400, {"error": "no"})

    with serving(reads) as url:
        scores = RemoteScorer(url, "small").score(PROMPT, CANDIDATES)
    np.testing.assert_allclose(scores, local.score(PROMPT, CANDIDATES), atol=1e-3)


def test_lines_that_are_too_many_for_its_model_are_told_by_reading_every_candidate(local):
    answer = vllm(local)

    def short(path, request, headers):
        if any(text.startswith("1. find the apple\n1.") for text in (request or {}).get("prompt", ())):
            return 400, {"error": {"message": "longer than the model's context"}}
        return answer(path, request, headers)

    with serving(short) as url:
        scores = RemoteScorer(url, "small").score(PROMPT, CANDIDATES)
    np.testing.assert_allclose(scores, local.score(PROMPT, CANDIDATES), atol=1e-3)


@pytest.mark.parametrize("number", [None, float("nan"), "high"])
def test_next_tokens_without_a_number_are_told_by_reading_every_candidate(local, number):
    answer = vllm(local)

    def odd(path, request, headers):
        status, told = answer(path, request, headers)
        if request and not request.get("echo"):
            for choice in told["choices"]:
                choice["logprobs"]["top_logprobs"][0][" find"] = number
        return status, told

    with serving(odd) as url:
        scores = RemoteScorer(url, "small").score(PROMPT, CANDIDATES)
    np.testing.assert_allclose(scores, local.score(PROMPT, CANDIDATES), atol=1e-3)


def test_what_another_thread_is_told_meanwhile_is_not_this_ones_answer(monkeypatch):
    mine, others = (("1.", (" go\n",)), [[-1.0]]), (("2.", (" no\n",)), [[-9.0]])
    last = iter([mine, others, others, others])
    monkeypatch.setattr(RemoteScorer, "_last", property(lambda _: next(last), lambda _, told: None), raising=False)
    scorer = RemoteScorer.__new__(RemoteScorer)
    scorer.batch = 2
    scorer._read = lambda texts, deadline: [Row(["1.", " go\n"][: n + 1], [None, -1.0][: n + 1]) for n in (0, 1)]
    assert [scorer._values("1.", [" go\n"], 0.0) for _ in range(2)] == [[[-1.0]]] * 2


@pytest.mark.parametrize(
    ("tokens", "cuts"),
    [
        (["1", ".", " go", "\n", "1", ".", " dance", "\n"], [("1", "."), (" go", "\n"), ("1", "."), (" dance", "\n")]),
        (["<s>", "1.", " go\n", "1", ".", " da", "nce\n"], [("1.",), (" go\n",), ("1", "."), (" da", "nce\n")]),
        (["1", ". go", "\n", "1", ".", " dance", "\n"], None),  # beyond the line's number
        (["1", ".", " go", "\n1", ".", " dance", "\n"], None),  # beyond the line
        (["1", ".", "?"], None),
        ([], None),
    ],
)
def test_tokens_of_lines_are_told_apart_or_not_at_all(tokens, cuts):
    assert _cuts(tokens, ["1.", " go\n", "1.", " dance\n"]) == cuts


def test_a_candidate_that_merges_with_the_prompts_last_word_is_cut_as_locally(local):
    prompt, candidates = "Café ☕ 1. find the app", ["le\n", "liance\n", " orange\n"]
    with serving(vllm(local)) as url:
        scores = RemoteScorer(url + "/v1/", "small").score(prompt, candidates)
    np.testing.assert_allclose(scores, local.score(prompt, candidates), atol=1e-3)


def echo_nothing(path, request, headers):
    """As llama.cpp's server: the generated token alone."""
    logprobs = {"tokens": [" x"], "token_logprobs": [-1.0], "text_offset": [0]}
    return 200, {"choices": [{"index": i, "text": " x", "logprobs": logprobs} for i in range(len(request["prompt"]))]}


def chats_only(path, request, headers):
    return (200, {"data": [{"id": "small"}]}) if path == "/v1/models" else (404, {"detail": "Not Found"})


def refuses_echo(path, request, headers):
    return 400, {"error": {"message": "Only no echo is supported"}}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda local: vllm(local, lambda values: [0.0] * len(values)), "zeros"),
        (lambda local: vllm(local, lambda values: [-2.0] * len(values)), "not likelihoods"),
        (lambda local: vllm(local, lambda values: [None] * len(values)), "left out"),
        (lambda local: echo_nothing, "no log-probabilities"),
        (lambda local: refuses_echo, "Only no echo"),
        (lambda local: chats_only, "only chats"),
    ],
)
def test_a_server_that_cannot_score_is_refused_with_the_reason_and_what_to_do_instead(local, answer, reason):
    with serving(answer(local)) as url, pytest.raises(CannotScore, match=reason) as refusal:
        RemoteScorer(url, "small")
    assert url in str(refusal.value) and "ProposalPlanner" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_model_that_is_not_there_is_told_apart_from_a_chat_server():
    with serving(chats_only) as url, pytest.raises(RemoteError, match=r"no model 'large'; it has: small"):
        RemoteScorer(url, "large")


def test_a_busy_server_is_asked_again_and_given_up_at_the_deadline(local, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    answer, statuses = vllm(local), [429, 503]

    def busy(path, request, headers):
        return (statuses.pop(), {"error": "slow down"}) if statuses else answer(path, request, headers)

    with serving(busy) as url:
        scorer = RemoteScorer(url, "small")
        assert not statuses
        scorer.timeout = 1.0
        statuses += [429] * 1000
        with pytest.raises(RemoteError, match=r"too busy.*429, slow down"):
            scorer.score(PROMPT, CANDIDATES)


def test_a_dead_a_frozen_and_a_senseless_server_are_named_in_one_line(local):
    with serving(lambda *_: (200, b"<html>hello")) as url, pytest.raises(RemoteError, match=f"{url} .*JSON"):
        RemoteScorer(url, "small")
    with pytest.raises(RemoteError, match=f"{url} cannot be reached: .*refused"):
        RemoteScorer(url, "small")
    thawed = threading.Event()
    with serving(lambda *_: (200, str(thawed.wait()).encode())) as url:
        try:
            with pytest.raises(RemoteError, match=rf"{url} gave no answer within 0\.5 s"):
                RemoteScorer(url, "small", timeout=0.5)
        finally:
            thawed.set()


def test_the_key_goes_to_the_server_and_into_no_error():
    seen = []

    def nosy(path, request, headers):
        seen.append(headers["Authorization"])
        return 401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}

    with serving(nosy) as url, pytest.raises(RemoteError, match="refuses the API key") as refusal:
        RemoteScorer(url, "small", api_key=KEY)
    assert seen == [f"Bearer {KEY}"]
    assert KEY not in str(refusal.value) and refusal.value.__cause__ is None
    for url, key in ((f"http://me:{KEY}@host", None), ("http://host", KEY + "\n")):
        with pytest.raises(ValueError) as mistake:
            RemoteScorer(url, "small", api_key=key)
        assert KEY not in str(mistake.value)
