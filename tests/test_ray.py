"""Replicas of the models on a Ray cluster of two workers, which die while robots and planners ask."""

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tiny_policies import TEXTS, make, observation
from tiny_services import wait_until

from saycan_qt import collect
from saycan_qt.evaluation.skills import SkillsConfig, results
from saycan_qt.kitchen.tasks import FAMILIES
from saycan_qt.learning import checkpoint
from saycan_qt.services.cluster import INSTALL, carried_out, joined
from saycan_qt.services.replicas import RayOptions, Replicas
from skills.client import SkillClient
from skills.errors import InvalidRequest, Unavailable
from skills.types import Observation

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray: pip install 'saycan-qt[ray]'")
SKILLS = "lists: {object: [apple, coke can]}\nfamilies: {pick: {name: 'pick {object}', text: 'pick the {object}'}}\n"
NAMES = ["pick apple", "pick coke can"]
STEPS, PATIENT = 4, 60  # control steps of one stream; [s] that a call may take


@contextmanager
def running(environment, stderr, *command):
    """A command that ends, by itself, once its standard input is closed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, *command], **pipes) as process:
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait(60)


class Served:
    """The skill server with its models on a cluster, and the very same models here."""

    def __init__(self, cluster, server, log, critic, actor):
        self.cluster, self.server, self.log = cluster, server, log
        self.address = server.stdout.readline().split()[-1]
        self.ready = server.stdout.readline()
        self.robots = []  # each one's text, what it sees, and the actions and values that are due
        for robot in range(4):
            text, seen = TEXTS[robot % 3], [observation(actor, 10 * robot + step) for step in range(STEPS)]
            actions = [actor.act(seen[: step + 1], text) for step in range(STEPS)]
            self.robots.append((text, seen, actions, critic.value(seen[:1], NAMES)))

    def hit(self, what):
        """Kill or freeze a replica's process, or kill a node; once the server has noticed, how many lines it had
        written before."""
        lines = len(self.said())
        print(what, file=self.cluster.stdin, flush=True)
        assert self.cluster.stdout.readline().split()[1:]
        wait_until(lambda: len(self.said()) > lines, 60)
        return lines

    def said(self):
        """What the server wrote to standard error, by line."""
        return [line.partition(": ")[2] for line in self.log.read_text().splitlines()]

    def ask(self, text, seen, actions, values):
        """One round of a robot and a planner: every answer is what the models say here."""
        with SkillClient(self.address, timeout=PATIENT) as client:
            with client.control(text, timeout=PATIENT) as control:
                for observation, action in zip(seen, actions, strict=True):
                    np.testing.assert_allclose(control.act(observation), action, atol=1e-5, rtol=0)
            scores = client.score(seen[:1], NAMES)
        np.testing.assert_allclose([score.raw for score in scores], values, atol=1e-5, rtol=0)

    def under_load(self, meanwhile):
        """What `meanwhile` returns; from before it until after it all robots ask on and on, and no call may fail."""
        rounds, over = [0] * len(self.robots), threading.Event()

        def drive(robot):
            while not over.is_set():
                self.ask(*self.robots[robot])
                rounds[robot] += 1

        def all_go_on():
            before = list(rounds)
            wait_until(lambda: crashed() or all(now >= then + 2 for now, then in zip(rounds, before, strict=True)), 60)

        def crashed():
            return any(robot.done() for robot in driven)

        with ThreadPoolExecutor(len(rounds)) as threads:
            driven = [threads.submit(drive, robot) for robot in range(len(rounds))]
            try:
                all_go_on()
                result = meanwhile()
                all_go_on()
            finally:
                over.set()
            for robot in driven:
                robot.result()
        return result


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """In the order of the tests, which end with one replica less and the server drained."""
    folder = tmp_path_factory.mktemp("ray")
    policies = make("q-transformer"), make("rt1")
    for name, policy in zip(("critic", "actor"), policies, strict=True):
        checkpoint.save(folder / name, *policy.describe(TEXTS), provenance={})
    (folder / "skills.yaml").write_text(SKILLS)
    closed = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment = os.environ | closed
    helper, log = Path(__file__).with_name("ray_cluster.py"), folder / "log"
    with log.open("w") as stderr, running(environment, None, str(helper), "2") as cluster:
        flags = ["--ray", cluster.stdout.readline().strip(), "--skills", str(folder / "skills.yaml"), "--threads", "1"]
        flags += [
            "--affordance",
            str(folder / "critic"),
            "--execution",
            str(folder / "actor"),
            "--stream-timeout",
            "60",
        ]
        flags += ["--log-level", "warning", "--until-stdin-closes", "--replica-timeout", "5"]
        with running(environment, stderr, "-m", "saycan_qt.serve", *flags) as server:
            yield Served(cluster, server, log, *policies)


@needs_ray
def test_there_is_a_replica_on_each_node_and_all_answers_are_the_models_own(served):
    assert served.ready.rstrip().endswith("on 2 replicas on 2 nodes")
    served.under_load(lambda: None)
    assert served.said() == []


@needs_ray
def test_what_a_model_refuses_is_refused_in_its_own_words(served):
    small = Observation(np.zeros((4, 4, 3), np.uint8), np.zeros(8, np.float32))
    with SkillClient(served.address, timeout=PATIENT) as client, pytest.raises(InvalidRequest) as caught:
        client.score([small], NAMES)
    assert str(caught.value).startswith("the image is (4, 4, 3) uint8; this policy wants")


@pytest.mark.slow
@needs_ray
def test_no_call_is_lost_when_a_replica_is_killed_under_load_and_it_comes_back(served):
    def kill():
        lines = served.hit("replica")
        wait_until(lambda: len(served.said()) > lines + 1, 60)

    served.under_load(kill)
    assert served.said() == [
        "a replica of the models died; 1 replica on 1 node left",
        "a replica of the models is back; 2 replicas on 2 nodes",
    ]


@pytest.mark.slow
@needs_ray
def test_no_call_is_lost_when_a_replica_freezes_under_load_and_it_is_asked_again_when_it_goes_on(served):
    def freeze():
        before = served.hit("freeze")
        served.hit("thaw")
        return before

    before = served.under_load(freeze)
    assert served.said()[before:] == [
        "a replica of the models does not answer; 1 replica on 1 node left",
        "a replica of the models is back; 2 replicas on 2 nodes",
    ]


@needs_ray
def test_no_call_is_lost_when_a_node_is_killed_under_load(served):
    lines = served.under_load(lambda: served.hit("node"))
    assert served.said()[lines:] == ["a replica of the models died; 1 replica on 1 node left"]


@needs_ray
def test_the_server_drains_and_leaves_no_replica_behind(served):
    served.server.send_signal(signal.SIGTERM)
    assert served.server.wait(30) == 0
    served.cluster.stdin.close()
    assert served.cluster.stdout.read() == ""  # "left", and which
    assert served.cluster.wait(60) == 0


@needs_ray
def test_what_a_lost_worker_and_a_lost_node_collected_is_collected_again_to_the_same_bits(tmp_path):
    options = ["--episodes", "40", "--families", "pick", "--failures", "0", "--workers", "2"]
    helper, environment = Path(__file__).with_name("ray_cluster.py"), os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    with running(environment, None, str(helper), "2") as cluster:
        flags = ["--ray", cluster.stdout.readline().strip(), "--out", str(tmp_path / "cluster"), *options]
        with running(environment, subprocess.PIPE, "-m", "saycan_qt.collect", *flags) as collecting:
            for what in ("replica", "node"):
                print(what, file=cluster.stdin, flush=True)
                assert cluster.stdout.readline().split()[1:]
                assert "a worker was lost" in collecting.stderr.readline()
            assert "40 episodes in" in collecting.stdout.read() and collecting.wait(60) == 0
    assert collect.main([*options, "--out", str(tmp_path / "here")]) == 0
    there, here = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "cluster", tmp_path / "here")
    )
    assert there == here


@needs_ray
def test_skills_are_evaluated_on_a_cluster_as_by_processes_here():
    config = SkillsConfig(episodes=2, families=("open drawer", "close drawer"))
    assert list(results(replace(config, ray="local"))) == sorted(
        results(config), key=lambda r: FAMILIES.index(r.family)
    )


@needs_ray
def test_the_works_own_error_is_raised_as_it_is():
    with joined("local", 1) as ray, pytest.raises(KeyError):
        list(carried_out(ray, lambda part, policy: {}[part], ["a"]))


@needs_ray
def test_a_part_that_kills_worker_after_worker_is_given_up():
    with joined("local", 1) as ray, pytest.raises(Unavailable, match="5 workers were lost over one part"):
        list(carried_out(ray, lambda part, policy: os.kill(os.getpid(), signal.SIGKILL), [1]))


def test_an_address_where_no_cluster_is_is_refused_at_once():
    with pytest.raises(Unavailable, match=r"cannot join the Ray cluster '127\.0\.0\.1:1': .*refused; start one with"):
        Replicas(RayOptions(ray="127.0.0.1:1"), threads=1)


def test_without_ray_the_next_move_is_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Unavailable, match=re.escape(INSTALL)):
        Replicas(RayOptions(ray="local"), threads=1)
