"""What robots do becomes data: recorded by a real skill server, read and trained on as collected episodes are."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
import small_disk
from tiny_services import LINE, LineRobot, Walker, wait_until

from saycan_qt import train
from saycan_qt.data import corrections, lerobot
from saycan_qt.data.episodes import DatasetError, EpisodeDataset
from saycan_qt.data.recorder import EpisodeRecorder
from saycan_qt.data.writer import EpisodeWriter
from skills import robot as robot_service
from skills import server as skill_service
from skills.client import RobotClient, SkillClient
from skills.errors import ServerFault
from skills.library import SkillLibrary
from skills.types import Observation, Outcome, Status
from skills.v1 import skills_pb2 as pb
from skills.v1 import skills_pb2_grpc
from skills.wire.messages import write_observation, write_outcome

LIBRARY = SkillLibrary.load()
PATIENT = skill_service.Limits(stream_timeout=10.0)
SMALL = Path(__file__).with_name("small_services.py")
SKILLS = SMALL.with_name("small_skills.yaml")
SUCCEEDED = Outcome(Status.SUCCEEDED)


class SeeingRobot(LineRobot):
    """A LineRobot with a camera of its own, which remembers what it saw."""

    def __init__(self, period=0.001, image=(4, 6)):
        super().__init__(period)
        self.image, self.seen = image, []

    def start(self, skill):
        self.x, self.seen = 0.0, []

    def observe(self):
        seen = super().observe()
        grain = np.random.default_rng(len(self.seen)).integers(0, 255, (*self.image, 3), np.uint8)
        self.seen.append(Observation(grain, seen.state))
        return self.seen[-1]


@contextmanager
def services(folder, robot, **options):
    with (
        EpisodeRecorder(folder, **options) as recorder,
        skill_service.serve(
            LIBRARY, Walker(), Walker(), model_id="walker", limits=PATIENT, recorder=recorder
        ) as server,
        SkillClient(server.address) as skills,
        robot_service.serve(robot, LIBRARY, skills, control_timeout=10.0) as robot_server,
        RobotClient(robot_server.address) as client,
    ):
        yield client, skills


def run(client, *skills):
    return [list(client.execute(skill))[-1].status for skill in skills]


def count(folder):
    """Episodes on disk now, with the files that a reader would open."""
    manifests = [lerobot.read_manifest(path) for path in folder.glob("shard-*") if (path / lerobot.MANIFEST).exists()]
    return sum(name.startswith("data/") for manifest in manifests for name in manifest["files"])


def walk(client, steps=3, goal_id="", instruction="pick apple", outcome=SUCCEEDED, image=(4, 6)):
    """One episode through the wire as any language can speak it; the answers."""
    here = Observation(np.zeros((*image, 3), np.uint8), np.zeros(1, np.float32))
    requests = [pb.ControlRequest(sequence=i + 1, observation=write_observation(here)) for i in range(steps)]
    requests[0].instruction, requests[0].goal_id = instruction, goal_id
    requests.append(pb.ControlRequest(sequence=steps + 1, outcome=write_outcome(outcome)))
    return list(client._stub.Control(iter(requests), timeout=20))


def test_what_a_robot_did_comes_back_as_it_was(tmp_path):
    robot = SeeingRobot()
    with services(tmp_path / "d", robot) as (client, _):
        assert run(client, "pick apple") == [Status.SUCCEEDED]
        walked = robot.seen[:-1]  # nothing followed the last one
        assert run(client, "open top drawer") == [Status.FAILED]
    dataset = EpisodeDataset(tmp_path / "d", max_bad_share=0.0)
    assert dataset.tasks == ["pick apple", "open top drawer"] and dataset.success.tolist() == [True, False]
    assert np.diff(dataset.episode_start).tolist() == [7, 45] and dataset.truncated.tolist() == [False, True]
    first, second = dataset.episode(0), dataset.episode(1)
    assert np.array_equal(first.views["front"], [seen.image for seen in walked])
    assert np.array_equal(first.states, [seen.state for seen in walked])
    assert np.allclose(first.actions[:, 0], 0.08) and first.actions[:, 1].tolist() == [0] * 6 + [1]
    assert first.rewards.tolist() == [0] * 6 + [1] and not second.rewards.any()
    assert dataset.info["outcome"] == ["succeeded", "failed"] and dataset.info["model_id"] == ["walker"] * 2


def test_how_a_person_says_an_episode_ended_counts_and_a_new_word_is_new_data(tmp_path):
    with services(tmp_path / "d", SeeingRobot()) as (client, skills):
        walk(skills, goal_id="a")
        walk(skills, goal_id="b", outcome=Outcome(Status.CANCELED))
        run(client, "pick apple")
    before = EpisodeDataset(tmp_path / "d")
    assert before.success.tolist() == [True, False, True] and before.finished.tolist() == [True, False, True]
    corrections.add(tmp_path / "d", "a", True)
    corrections.add(tmp_path / "d", "a", False)
    corrections.add(tmp_path / "d", "b", True)
    after = EpisodeDataset(tmp_path / "d")
    assert after.success.tolist() == [False, True, True] and after.finished.all() and after.digest != before.digest
    assert [after.rewards[after.frames(i)].sum() for i in range(3)] == [0, 1, 1]
    (tmp_path / "d" / corrections.FILE).write_text('{"goal_id": "a"}')
    with pytest.raises(DatasetError, match=r"corrections.jsonl, line 1: .*mend it, or take it out"):
        EpisodeDataset(tmp_path / "d")


def test_each_shard_is_a_lerobot_dataset(tmp_path):
    with services(tmp_path / "d", SeeingRobot(), per_shard=2) as (client, _):
        run(client, *["pick apple"] * 3)
    for shard, episodes in (("shard-000", 2), ("shard-001", 1)):
        root = tmp_path / "d" / shard
        info, data = json.loads((root / lerobot.INFO).read_text()), sorted(root.glob("data/*/*.parquet"))
        assert info["codebase_version"] == "v3.0" and info["total_episodes"] == len(data) == episodes
        assert all(list(info["features"]) == pq.read_schema(path).names for path in data)
        assert b"huggingface" in pq.read_schema(data[0]).metadata
        EpisodeWriter(root, LINE, robot_type="recorded").close()  # finds nothing to mend, and may go on
    assert EpisodeDataset(tmp_path / "d").num_episodes == 3


def test_training_learns_from_recordings_as_they_are(tmp_path):
    with services(tmp_path / "d", SeeingRobot(image=(80, 96))) as (client, _):
        run(client, *["pick apple"] * 3, "open top drawer")
    flags = ["--data", tmp_path / "d", "--out", tmp_path / "run", "--debug", "--steps", "2"]
    train.train(train.command(["q-transformer", *map(str, flags)]))
    assert (tmp_path / "run" / "checkpoint").exists()


def test_what_was_not_ended_is_kept_and_marked_but_not_learnt_from(tmp_path):
    robot, broken = SeeingRobot(), threading.Event()

    def apply(action):
        if broken.is_set():
            raise RuntimeError("a cable is loose")
        LineRobot.apply(robot, action)

    robot.apply = apply
    with services(tmp_path / "d", robot) as (client, skills):
        run(client, "pick apple")
        robot.period = 0.3
        execution = client.execute("open top drawer")
        next(execution)
        robot.moving.clear()
        assert robot.moving.wait(10) and execution.cancel()  # while it moves
        assert list(execution)[-1].status is Status.CANCELED
        with skills.control("pick apple") as control:  # a robot that leaves without a word
            control.act(robot.observe())
            control.act(robot.observe())
        wait_until(lambda: count(tmp_path / "d") == 3, 20)
        robot.period = 0.0
        execution = client.execute("open top drawer")
        next(execution)
        broken.set()
        with pytest.raises(ServerFault, match="driver failed"):
            list(execution)
        wait_until(lambda: count(tmp_path / "d") == 4, 20)
    dataset = EpisodeDataset(tmp_path / "d", max_bad_share=0.0)
    assert dataset.info["outcome"] == ["succeeded", "canceled", "lost", "aborted"]
    assert dataset.success.tolist() == dataset.finished.tolist() == [True, False, False, False]


def test_the_outcome_is_told_before_the_robot_returns_to_its_pose(tmp_path):
    robot = SeeingRobot()
    robot.finish = lambda skill, canceled: wait_until(lambda: count(tmp_path / "d") == 1, 20)
    with services(tmp_path / "d", robot) as (client, _):
        assert run(client, "pick apple") == [Status.SUCCEEDED]


def test_any_client_may_name_its_goal_and_its_outcome(tmp_path):
    with services(tmp_path / "d", SeeingRobot()) as (_, skills):
        assert len(walk(skills, 3, "goal-7")) == 3  # the outcome is not answered
        walk(skills, 3, outcome=Outcome(Status.ABORTED, steps=2))  # the third action was not carried out
        wait_until(lambda: count(tmp_path / "d") == 2, 20)
    dataset = EpisodeDataset(tmp_path / "d")
    assert dataset.info["goal_id"] == ["goal-7", ""] and np.diff(dataset.episode_start).tolist() == [3, 2]


HERE = write_observation(LineRobot().observe())
BEGIN = pb.ControlRequest(sequence=1, instruction="pick apple", observation=HERE)
ENDED = write_outcome(SUCCEEDED)


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([pb.ControlRequest(sequence=1, instruction="pick apple", outcome=ENDED)], "this one has not begun"),
        ([BEGIN, pb.ControlRequest(sequence=2, observation=HERE, outcome=ENDED)], "not both"),
        ([BEGIN, pb.ControlRequest(sequence=1, outcome=ENDED)], "it must grow"),
        ([BEGIN, pb.ControlRequest(sequence=2, outcome=pb.Outcome())], "no known status"),
    ],
)
def test_a_wrong_last_word_is_refused(requests, reason):
    with (
        skill_service.serve(LIBRARY, Walker(), Walker(), limits=PATIENT) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        with pytest.raises(grpc.RpcError, match=reason) as caught:
            list(skills_pb2_grpc.SkillServiceStub(channel).Control(iter(requests), timeout=20))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_nothing_follows_the_outcome():
    late = pb.ControlRequest(sequence=3, observation=HERE)
    with (
        skill_service.serve(LIBRARY, Walker(), Walker(), limits=PATIENT) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        requests = [BEGIN, pb.ControlRequest(sequence=2, outcome=ENDED), late]
        assert len(list(skills_pb2_grpc.SkillServiceStub(channel).Control(iter(requests), timeout=20))) == 1


def test_robots_go_on_while_the_disk_is_slow(tmp_path, monkeypatch):
    answers, flush = threading.Event(), EpisodeWriter.flush
    monkeypatch.setattr(EpisodeWriter, "flush", lambda writer: answers.wait(30) and flush(writer))
    with services(tmp_path / "d", SeeingRobot()) as (client, _):
        assert run(client, *["pick apple"] * 3) == [Status.SUCCEEDED] * 3
        assert count(tmp_path / "d") == 0
        answers.set()
    assert EpisodeDataset(tmp_path / "d").num_episodes == 3


def test_a_full_disk_costs_the_recording_not_the_robot(tmp_path, monkeypatch, caplog):
    write, full = lerobot.write_table, [True]

    def write_table(path, table):
        if full and full.pop():
            raise OSError(28, "No space left on device")
        write(path, table)

    monkeypatch.setattr(lerobot, "write_table", write_table)
    with services(tmp_path / "d", SeeingRobot()) as (client, _):
        assert run(client, "pick apple", "pick apple", "open top drawer") == [Status.SUCCEEDED] * 2 + [Status.FAILED]
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert re.fullmatch(r"not recorded: 'pick apple' \(goal \w{32}\): \[Errno 28\] No space left on device", warning)
    assert EpisodeDataset(tmp_path / "d", max_bad_share=0.0).success.tolist() == [True, False]


def test_a_disk_that_is_really_full_is_told_in_one_line_at_the_start_and_for_each_episode(tmp_path, caplog):
    with small_disk.mounted(tmp_path / "disk", 200_000) as disk:
        with services(disk / "d", SeeingRobot()) as (client, _):
            assert run(client, "pick apple") == [Status.SUCCEEDED]
            wait_until(lambda: count(disk / "d"))
            small_disk.fill(disk)
            assert run(client, "pick apple") == [Status.SUCCEEDED]
            wait_until(lambda: "not recorded" in caplog.text)
        small_disk.fill(disk)
        told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert told and all("No space left on device" in line and "\n" not in line for line in told)
        with pytest.raises(DatasetError, match="No space left on device; record to another folder"):
            EpisodeRecorder(disk / "d")
        (disk / "ballast").unlink()
        assert EpisodeDataset(disk / "d", max_bad_share=0.0).success.tolist() == [True]


def test_what_does_not_fit_into_memory_is_left_out(tmp_path, caplog):
    with services(tmp_path / "d", SeeingRobot(), memory=10 * (4 * 6 * 3 + 4)) as (client, _):
        assert run(client, "open top drawer", "pick apple") == [Status.FAILED, Status.SUCCEEDED]
    assert "not recorded: 'open top drawer'" in caplog.text and "waits for the disk" in caplog.text
    assert EpisodeDataset(tmp_path / "d").tasks == ["pick apple"]


def test_a_robot_with_another_camera_is_served_and_not_recorded(tmp_path, caplog):
    with services(tmp_path / "d", SeeingRobot()) as (client, skills):
        run(client, "pick apple")
        assert len(walk(skills, image=(8, 10))) == 3
    assert "holds images of 4 x 6 pixels, these have 8 x 10" in caplog.text
    assert EpisodeDataset(tmp_path / "d").num_episodes == 1


def test_a_folder_knows_the_models_that_fit_it(tmp_path):
    with services(tmp_path / "d", SeeingRobot()) as (client, _):
        run(client, "pick apple")
    with EpisodeRecorder(tmp_path / "d") as recorder:
        other = replace(LINE, action=LINE.action[:1], name="gantry")
        assert recorder.num_episodes == 1 and not recorder.misfit(LINE) and not recorder.misfit(None)
        assert recorder.misfit(other).endswith("was recorded with another action than gantry has")
        assert "was recorded at 3 Hz, not 20" in recorder.misfit(replace(LINE, control_hz=20.0))
        assert "holds images of cameras front, these are of none" in recorder.misfit(replace(LINE, cameras=()))


def test_a_folder_in_use_is_refused(tmp_path):
    with EpisodeRecorder(tmp_path), pytest.raises(DatasetError, match="another server records there; give"):
        EpisodeRecorder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.txt", "milk", r"something else than recordings \(notes.txt\); record to a new folder"),
        ("recording.json", '{"image_size": [4, 6], "fps": 10}', "recorded at 10 Hz, not 3; record to another folder"),
        ("recording.json", "{}", "damaged; record to another folder"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=reason):
        EpisodeRecorder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {name, ".lock"} and (tmp_path / name).read_text() == content


@contextmanager
def server_process(folder):
    """`serve --record` as its own process; what it said first, and a client."""
    command = [sys.executable, str(SMALL), "serve", "--skills", str(SKILLS), "--record", str(folder)]
    with subprocess.Popen([*command, "--until-stdin-closes"], stdin=-1, stdout=-1, stderr=-1, text=True) as process:
        lines = []
        while not lines or "ready" not in lines[-1]:
            lines.append(process.stdout.readline().strip())
            assert lines[-1], process.stderr.read()
        with SkillClient(lines[0].split()[-1]) as client:
            yield process, lines, client
        process.kill()


@pytest.mark.slow
def test_a_killed_server_loses_what_still_ran_and_a_new_one_goes_on(tmp_path):
    folder = tmp_path / "d"
    with server_process(folder) as (process, lines, client):
        assert f"recording to {folder}, 0 episodes there" in lines
        walk(client, goal_id="first")
        wait_until(lambda: count(folder) == 1, 20)
        with client.control("pick apple", timeout=20) as control:
            control.act(Observation(np.zeros((4, 6, 3), np.uint8), np.zeros(1, np.float32)))
            for number in range(20):
                walk(client, goal_id=str(number))
            os.kill(process.pid, signal.SIGKILL)  # one runs, some wait, one is being written
            process.wait()
    before = EpisodeDataset(folder, max_bad_share=0.0)
    there = before.num_episodes
    assert before.info["goal_id"] == ["first", *map(str, range(there - 1))]
    with server_process(folder) as (process, lines, client):
        assert f"recording to {folder}, {there} episodes there" in lines
        second = subprocess.run(process.args[:-1], capture_output=True, text=True, timeout=60)
        assert second.returncode == 2 and len(second.stderr.splitlines()) == 1
        assert second.stderr.startswith(f"error: {folder}: another server records there")
        walk(client, goal_id="last")
        process.terminate()
        assert process.wait(30) == 0 and "not recorded" not in process.stderr.read()
    after = EpisodeDataset(folder, max_bad_share=0.0)
    assert after.info["goal_id"] == [*before.info["goal_id"], "last"]
