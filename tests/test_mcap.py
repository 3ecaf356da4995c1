"""A run as an MCAP file, read by the format's own reader."""

import io
import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import numpy as np
import pytest
import small_disk
from mcap.exceptions import EndOfFile, McapError
from mcap.reader import make_reader
from mcap.records import Message
from mcap.stream_reader import StreamReader
from mcap_protobuf.decoder import DecoderFactory
from PIL import Image

from saycan_qt import report
from saycan_qt.journey import mcap
from saycan_qt.journey.config import RunConfig, check
from saycan_qt.journey.feed import Feed
from saycan_qt.journey.results import Candidate, RunFolder, Step
from skills.types import Observation, Outcome, Status

ROWS = [
    Candidate("find apple", "find the apple", 0.75, 1.0, 0.75, 1.0, "critic", 1.0),
    Candidate("pick apple", "pick up the apple", 0.2, 0.125, 0.025, 1.0, "critic", 0.1),
    Candidate("done", "done", None, 0.2, 0.0, 1.0, "planner", None),
]


def jpeg(colour):
    data = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(data, "JPEG")
    return data.getvalue()


def travel(folder):
    """A run of two steps, of which the second fails and, as a person says, has succeeded."""
    pictures = {"head": jpeg("red"), "the room": jpeg("blue")}
    folder.note(models={"language": "small"}, robot={"name": "arm", "address": "", "state": ["x", "gripper"]})
    for number, outcome in enumerate((Outcome(Status.SUCCEEDED), Outcome(Status.FAILED, "nothing is held", 3)), 1):
        folder.feed.now("thinking", step=number)
        folder.feed.show(pictures)
        chosen, *others = ROWS[number - 1 :]
        observed, views = folder.save_pictures(f"step-{number:02d}", Observation({}, np.zeros(2)), pictures)
        step = Step(number, chosen.skill, chosen.text, chosen.language, chosen.affordance, chosen.score, raw=chosen.raw)
        step.observation, step.views, step.state, step.place = observed, views, [0.25, number / 2], "table"
        step.objects, step.candidates = {"apple": "table"}, [chosen, *others]
        folder.weigh(step)
        folder.begin(step)
        folder.feed.now("moving", step=number)
        for control_step in range(1, outcome.steps + 1):
            folder.feed.now("moving", step=number, control_step=control_step, of=120)
        folder.end(outcome, 0.002)
    question = {"step": 2, "instruction": "fetch", "reason": "which?", "confidence": 0.4, "options": ["a", "b"]}
    folder.feed.tell(question={"id": 1, **question})
    folder.note(questions=[{**question, "answer": "b"}])
    folder.correct(2, "succeeded")
    for stopped in (False, True, True):
        folder.feed.tell(stopped=stopped)
    folder.feed.tell(line="the guard has gone")
    folder.finish(False, "the goal is not met after 2 skills", "max steps", "goal")


@pytest.fixture
def written(tmp_path):
    """A whole run in run/, and what was written while it went on in run.mcap."""
    feed = Feed([mcap.watcher(tmp_path / "run.mcap")])
    travel(RunFolder(tmp_path / "run", "fetch an apple", 3, feed))
    feed.close()
    return tmp_path / "run.mcap"


def read(path):
    """(log time, message) of each topic, in order; metadata; attachments."""
    with path.open("rb") as file:
        reader, told = make_reader(file, True, [DecoderFactory()]), {}
        for _, channel, message, decoded in reader.iter_decoded_messages():
            told.setdefault(channel.topic, []).append((message.log_time, decoded))
        return told, {row.name: row.metadata for row in reader.iter_metadata()}, list(reader.iter_attachments())


def messages(told, topic):
    return [message for _, message in told[topic]]


def plan_of(path):
    return json.loads((path.parent / "run" / "plan.json").read_text())


def test_pictures_are_those_that_the_cameras_showed(written):
    told = read(written)[0]
    for topic, view, colour in (("/camera/head", "head", "red"), ("/camera/the-room", "the room", "blue")):
        for at, picture in told[topic]:
            assert (picture.format, picture.frame_id) == ("jpeg", view) and picture.data == jpeg(colour)
            assert picture.timestamp.ToNanoseconds() == at
            assert Image.open(io.BytesIO(picture.data)).size == (64, 48)
        assert len(told[topic]) == 2


def test_every_number_of_a_decision_is_that_of_plan_json(written):
    told, plan = read(written)[0], plan_of(written)
    named = {"language": "language", "affordance": "affordance", "product": "score", "lowered": "lowered", "raw": "raw"}
    for kind in ("language", "affordance", "product"):
        assert len(told[f"/saycan/{kind}"]) == len(plan["steps"])
    for number, (step, decision) in enumerate(zip(plan["steps"], messages(told, "/saycan/decision"), strict=True)):
        assert (decision.step, decision.skill, decision.text) == (step["step"], step["skill"], step["text"])
        for row, said in [*zip(step["candidates"], decision.candidates, strict=True), (step, decision)]:
            assert (said.skill, said.text) == (row["skill"], row["text"])
            expected = [np.nan if row[name] is None else row[name] for name in named.values()]
            np.testing.assert_array_equal([getattr(said, name) for name in named], expected)
        for kind in ("language", "affordance", "product"):
            best = messages(told, f"/saycan/{kind}")[number]
            ranked = [getattr(row, kind) for row in decision.candidates] + [np.nan] * 5
            np.testing.assert_array_equal([best.chosen, best.second, best.third, best.fourth, best.fifth], ranked[:5])
        belief, state = messages(told, "/saycan/belief")[number], messages(told, "/robot/state")[number]
        assert (belief.place, belief.held) == (step["place"], step["held"])
        assert {one.name: one.place for one in belief.objects} == step["objects"]
        assert [(one.name, one.value) for one in state.numbers] == list(
            zip(("x", "gripper"), step["state"], strict=True)
        )


def test_skills_are_told_with_their_control_steps_and_how_they_ended(written):
    rows = [(one.step, one.outcome, one.control_step) for one in messages(read(written)[0], "/saycan/skill")]
    assert rows[:2] == [(1, "running", 0), (1, "succeeded", 0)]
    assert rows[2:7] == [*((2, "running", step) for step in range(4)), (2, "failed", 3)]
    assert messages(read(written)[0], "/saycan/skill")[-1].corrected == "succeeded"


def test_the_log_tells_the_story(written):
    assert [(line.level, line.message) for line in messages(read(written)[0], "/log")] == [
        (mcap.INFO, "“fetch an apple”"),
        (mcap.INFO, "1. find the apple: chosen from 3 skills"),
        (mcap.INFO, "1. find the apple: succeeded"),
        (mcap.INFO, "2. pick up the apple: chosen from 2 skills"),
        (mcap.WARNING, "2. pick up the apple: failed: nothing is held"),
        (mcap.INFO, "asked: which? (a / b)"),
        (mcap.INFO, "answered: b"),
        (mcap.INFO, "2. pick up the apple: succeeded, as you say"),
        (mcap.WARNING, "the robot is stopped"),
        (mcap.INFO, "the guard has gone"),
        (mcap.ERROR, "Not carried out: the goal is not met after 2 skills"),
    ]


def test_what_was_asked_of_what_stands_in_the_file(written):
    told, metadata, [attached] = read(written)
    assert [(one.text, one.run) for one in messages(told, "/saycan/instruction")] == [("fetch an apple", "run")]
    assert metadata["run"]["instruction"] == "fetch an apple" and metadata["models"] == {"language": "small"}
    assert metadata["versions"] == plan_of(written)["versions"]
    assert attached.name == "plan.json" and json.loads(attached.data) == plan_of(written)


def test_times_are_the_wall_clock_as_things_happened(tmp_path):
    before, feed = time.time_ns(), Feed([mcap.watcher(tmp_path / "run.mcap")])
    travel(RunFolder(tmp_path / "run", "fetch an apple", 3, feed))
    after = time.time_ns()
    feed.close()
    told = read(tmp_path / "run.mcap")[0]
    times = [at for topic in told.values() for at, _ in topic]
    assert before <= min(times) and max(times) <= after
    shown, decided = ([at for at, _ in told[topic]] for topic in ("/camera/head", "/saycan/decision"))
    begun = [at for at, one in told["/saycan/skill"] if one.outcome == "running" and not one.control_step]
    assert all(a < b < c for a, b, c in zip(shown, decided, begun, strict=True))


def test_a_folder_becomes_the_same_file_afterwards(written, tmp_path, monkeypatch, capsys):
    later = tmp_path / "later.mcap"
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "run"), "--mcap", str(later)])
    assert report.main() == 0 and str(later) in capsys.readouterr().out
    (live, _, _), (told, metadata, [attached]) = read(written), read(later)
    for topic in ("/saycan/decision", "/saycan/affordance", "/saycan/belief", "/robot/state", "/saycan/instruction"):
        assert list(map(str, messages(told, topic))) == list(map(str, messages(live, topic)))
    assert [one.data for one in messages(told, "/camera/head")] == [one.data for one in messages(live, "/camera/head")]
    assert {one.message for one in messages(told, "/log")} >= {
        "answered: b",
        "2. pick up the apple: succeeded, as you say",
    }

    def story(told, step):
        return [line.message for line in messages(told, "/log") if line.message.startswith(step)]

    assert [story(told, step) for step in ("1.", "2.")] == [story(live, step) for step in ("1.", "2.")]
    begun = [at for at, one in told["/saycan/skill"] if one.outcome == "running"]
    started = [datetime.fromisoformat(step["started"]) for step in plan_of(written)["steps"]]
    assert [datetime.fromtimestamp(at / 1e9, UTC) for at in begun] == started
    assert metadata["models"] == {"language": "small"} and json.loads(attached.data) == plan_of(written)
    assert report.main() == 2 and "never overwritten" in capsys.readouterr().err


def test_a_plan_that_tells_too_little_is_refused_in_a_line_and_leaves_no_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "plan.json").write_text('{"instruction": "x", "steps": []}')
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path), "--mcap", str(tmp_path / "x.mcap")])
    assert report.main() == 2 and not (tmp_path / "x.mcap").exists()
    assert capsys.readouterr().err.endswith("plan.json is not as a run leaves it: KeyError: 'started'\n")


DIES = """
import os, pathlib, signal, sys, time
from saycan_qt.journey import mcap
mcap.EVERY, done = 0.05, []
for name in ("views", "flush"):
    def told(*given, name=name, inner=getattr(mcap.McapFile, name)):
        inner(*given)
        done.append(name)
    setattr(mcap.McapFile, name, told)
watcher = mcap.watcher(pathlib.Path(sys.argv[1]))
watcher.tell({"run": {"name": "run", "folder": "/nowhere", "plan": {"instruction": "fetch"}}})
for number in range(200):
    watcher.tell({"line": f"line {number}"})
watcher.show({"head": b"picture"})
began = time.monotonic()
while ("flush" not in done[-1:] or "views" not in done) and time.monotonic() < began + 20:
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_written_before_a_kill_can_be_read(tmp_path):
    """So `mcap recover` reads such a file, record by record; it has no index, so that a viewer asks for that first."""
    path = tmp_path / "run.mcap"
    assert subprocess.run([sys.executable, "-c", DIES, str(path)]).returncode == -9
    found = []
    with path.open("rb") as file, pytest.raises(EndOfFile):
        found.extend(record for record in StreamReader(file).records)
    said = b"".join(record.data for record in found if isinstance(record, Message))
    assert all(f"line {number}".encode() in said for number in range(200)) and b"picture" in said
    with path.open("rb") as file, pytest.raises(McapError):
        make_reader(file).get_summary()


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "run.mcap"
    path.write_text("mine")
    mistake = check(RunConfig(instruction="bring me a snack", mcap=path))
    assert mistake == f"--mcap {path} is there already; choose a new file, results are never overwritten"
    with pytest.raises(FileExistsError):
        mcap.watcher(path)
    assert path.read_text() == "mine"


def test_without_the_package_it_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mcap", None)
    mistake = check(RunConfig(instruction="bring me a snack", mcap=tmp_path / "run.mcap"))
    assert "pip install 'saycan-qt[mcap]'" in mistake and "\n" not in mistake


def test_a_run_that_was_a_mistake_leaves_no_file(tmp_path):
    feed = Feed([mcap.watcher(tmp_path / "run.mcap")])
    folder = RunFolder(tmp_path / "run", "fetch an apple", 3, feed)
    folder.discard()
    feed.close()
    assert not any(tmp_path.iterdir())


def test_a_session_has_its_runs_one_after_the_other(tmp_path):
    feed = Feed([mcap.watcher(tmp_path / "session.mcap")])
    for name in ("01", "02"):
        travel(RunFolder(tmp_path / name, f"fetch {name}", 3, feed))
    feed.close()
    told, _, attached = read(tmp_path / "session.mcap")
    assert [one.run for one in messages(told, "/saycan/instruction")] == ["01", "02"]
    assert [json.loads(one.data)["instruction"] for one in attached] == ["fetch 01", "fetch 02"]
    assert [one.step for one in messages(told, "/saycan/decision")] == [1, 2, 1, 2]


def test_a_disk_that_is_full_costs_the_file_and_one_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(mcap, "EVERY", 0.01)
    with small_disk.mounted(tmp_path / "disk", "64k") as disk:
        watcher = mcap.watcher(disk / "run.mcap")
        for _ in range(20):
            watcher.show({"head": np.random.default_rng(0).bytes(20_000)})
            time.sleep(0.01)
        watcher.close()
        assert not any(disk.iterdir())
    assert [record.message for record in caplog.records] == [
        f"there is no MCAP file: {disk / 'run.mcap'} cannot be written: No space left on device"
    ]


def test_a_disk_that_is_slow_keeps_nobody_waiting_and_costs_frames_first(tmp_path, caplog, monkeypatch, machine):
    hangs = threading.Event()
    monkeypatch.setattr(mcap.McapFile, "flush", lambda self: hangs.wait())
    monkeypatch.setattr(mcap, "EVERY", 0.0)
    feed = Feed([mcap.watcher(tmp_path / "run.mcap")])
    folder = RunFolder(tmp_path / "run", "fetch an apple", 3, feed)
    began = time.monotonic()
    for number in range(1000):
        feed.show({"head": b"picture"})
        feed.tell(line=f"line {number}")
    assert time.monotonic() - began < 0.5 + machine.lateness()
    hangs.set()
    folder.finish(True, "it is there", "done")
    feed.close()
    told = read(tmp_path / "run.mcap")[0]
    lines = [line.message for line in messages(told, "/log")]
    assert [line for line in lines if line.startswith("line ")] == [f"line {number}" for number in range(1000)]
    assert len(told["/camera/head"]) <= mcap.FRAMES + 1
    left = 1000 - len(told["/camera/head"])
    assert f"{left} pictures or events were left out" in lines[-1] and lines[-1] in caplog.text


def test_an_event_that_is_none_costs_only_itself(tmp_path, caplog):
    feed = Feed([mcap.watcher(tmp_path / "run.mcap")])
    folder = RunFolder(tmp_path / "run", "fetch an apple", 3, feed)
    feed.tell(step={"step": "one"})
    feed.tell(line="it goes on")
    folder.finish(True, "it is there", "done")
    feed.close()
    assert "it goes on" in [line.message for line in messages(read(tmp_path / "run.mcap")[0], "/log")]
    assert "lacks an event" in caplog.text
