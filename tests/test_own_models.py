"""Commands for other robots: serve with classes of one's own, numbers that will not do, and who waits for whom."""

import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_services import LINE, LineRobot, Walker

from saycan_qt import serve as command
from saycan_qt.learning import checkpoint
from saycan_qt.services import models, own
from saycan_qt.services.replicas import RayOptions, Replica, Shipped
from skills.client import SkillClient
from skills.errors import Unreadable
from skills.library import Skill, SkillLibrary
from skills.robot_folder import default_robot
from skills.types import blank

HERE = Path(__file__).parent
LIBRARY = SkillLibrary([Skill("pick apple", "pick")])
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE)))}
MODELS = """
from tiny_services import Walker
from skills.robot_folder import default_robot

class Deaf(Walker):
    def act(self, history, instruction):
        raise ValueError("nothing is seen in the dark")

class Kitchen(Walker):
    embodiment = default_robot().embodiment

class Needy(Walker):
    def __init__(self, checkpoint): ...

class Judge:
    def value(self, history, instructions): ...
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(MODELS)
    (tmp_path / "broken_models.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "skills.yaml").write_text("families: {pick: {name: pick apple}, done: {name: done, learned: false}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_models", None)


@contextmanager
def running(*arguments, environment=ENVIRONMENT):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    return done.returncode, done.stderr.strip()


def choose(affordance, execution="", **options):
    return models.load(lambda: models.checkpoints(affordance, execution or affordance, **options), LIBRARY)


def test_classes_of_ones_own_are_served_without_torch_under_their_names_with_their_embodiment(folder):
    flags = ["--affordance", "tiny_services:Walker", "--execution", "tiny_services:Walker", "--skills", "skills.yaml"]
    with running("-m", "saycan_qt.serve", *flags, "--also", "same=my_models:Kitchen") as process:
        address = process.stdout.readline().split()[-1]
        ready = process.stdout.readline()
        assert (
            "judged by tiny_services:Walker, done by tiny_services:Walker; same: judged by my_models:Kitchen" in ready
        )
        with SkillClient(address) as client, client.control("pick apple") as control:
            assert control.act(LineRobot().observe()).shape == (2,)
            info = client.info()
        assert info.embodiment.name == "line robot" and info.models[1].embodiment.name == "kitchen robot"
        loaded = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch" not in loaded


def test_one_class_that_judges_and_acts_is_made_once(folder):
    found = choose("my_models:Kitchen")
    assert found.critic is found.actor and found.embodiment == default_robot().embodiment


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["my_model:Critic"], "my_model:Critic: there is no module 'my_model' in "),
        (["my_models:Critic"], "the module 'my_models' has no 'Critic'"),
        (["broken_models:Critic"], "there is no module 'nothing_of_that_name'"),
        (["my_models:Needy"], r"cannot be constructed without arguments: TypeError: .*'checkpoint'"),
        (["my_models:Judge"], "class 'my_models:Judge' only judges; one that acts is needed"),
        (["my_models:Deaf"], "my_models:Deaf failed at a blank observation .*nothing is seen in the dark"),
        (
            ["tiny_services:Walker", "my_models:Kitchen"],
            "are for different robots: action dimension 2 is 'term",
        ),
        (["runs/critic"], "runs/critic"),
    ],
)
def test_a_class_that_cannot_be_served_is_refused_in_one_line_with_its_reason(folder, names, said):
    with pytest.raises(Unreadable, match=said) as refused:
        choose(*names)
    assert "\n" not in str(refused.value)


def test_a_class_has_no_curve_to_be_calibrated_by(folder):
    with pytest.raises(Unreadable, match="--calibrated takes a checkpoint"):
        choose("my_models:Kitchen", calibrated=True)


def test_two_checkpoints_are_told_apart_by_their_settings_too(tmp_path):
    """The same weights act otherwise with other settings: their ids are two."""
    config, tensors, provenance = checkpoint.load_files(checkpoint.SHIPPED / "execution")
    config["config"]["circles"] += 1
    checkpoint.save(tmp_path / "execution", config, tensors, provenance)
    ids = [models.checkpoints("affordance", name).actor_id for name in ("execution", str(tmp_path / "execution"))]
    assert ids[0] != ids[1] and all(re.fullmatch("execution@[0-9a-f]{8}", name) for name in ids)


def test_a_folder_with_a_colon_in_its_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert own.is_own("runs:Night") and not own.is_own("affordance") and not own.is_own("runs/a:b")
    (tmp_path / "runs:Night").mkdir()
    assert not own.is_own("runs:Night")


def test_a_replica_holds_a_class_and_answers_many_questions_with_it():
    replica, model, seen = Replica(1, "cpu"), Shipped("tiny_services:Walker", "tiny_services:Walker", []), blank(LINE)
    replica.keep(model, ["pick apple"])
    actions = replica.ask(model, "act_many", [[seen], [seen]], ["pick apple", "open drawer"])
    np.testing.assert_array_equal(actions, np.float32([[0.08, 0], [0, 0]]))
    values = replica.ask(model, "value_many", [[seen]], [["pick apple", "pick tea"]])
    np.testing.assert_array_equal(values, [Walker().value([seen], ["pick apple", "pick tea"])])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--threads", "0"], "error: --threads is 0; at least 1 is needed"),
        (["--robots", "-1"], "error: --robots is -1; at least 1 is needed"),
        (["--stream-timeout", "nan"], "error: --stream-timeout is nan; more than 0 is needed"),
        (["--port", "70000"], "error: --port is 70000; 0 to 65535 are ports"),
        (["--affordance", "my_models:Critic"], "error: my_models:Critic: there is no module 'my_models'"),
    ],
)
def test_what_the_server_is_asked_for_wrongly_is_one_line_and_exit_code_2(flags, said):
    code, line = ended("-m", "saycan_qt.serve", *flags)
    assert code == 2 and line.startswith(said) and "\n" not in line


def test_numbers_that_will_do_are_no_mistake():
    assert not command.mistake(command.ServeConfig())
    assert "replicas" in command.mistake(command.ServeConfig(cluster=replace(RayOptions(), replicas=-1)))
    assert "--ray" in command.mistake(command.ServeConfig(cluster=RayOptions(replicas=4)))


def test_a_robot_that_is_started_before_its_skill_server_says_so_and_waits():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with running(HERE / "small_services.py", "robot", "--skill-server", f"127.0.0.1:{port}") as robot:
        assert robot.stdout.readline() == f"waiting for the skill server at 127.0.0.1:{port} ...\n"
        skills = HERE / "small_skills.yaml"
        with running(HERE / "small_services.py", "serve", "--skills", skills, "--port", port):
            assert robot.stdout.readline().startswith("kitchen robot listening on ")


def test_a_robot_for_which_the_skill_servers_model_is_not_ends_with_the_reason_and_exit_code_2():
    with running(HERE / "tiny_services.py") as server:
        address = server.stdout.readline().strip()
        code, line = ended(str(HERE / "small_services.py"), "robot", "--skill-server", address)
    said = f"walker of the skill server at {address}: this policy is not for this robot: action dimension 1 is 'dx'"
    assert code == 2 and line.startswith(f"error: {said} for the policy, 'count' for the robot") and "\n" not in line
