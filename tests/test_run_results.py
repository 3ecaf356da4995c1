"""What a run leaves behind: plan.json, the video, the report."""

import io
import json
import re
import shutil
from types import SimpleNamespace

import av
import bombs
import numpy as np
import pytest
import small_disk
from PIL import Image
from rich.console import Console

from saycan_qt.journey.config import RunConfig
from saycan_qt.journey.display import Display
from saycan_qt.journey.lifecycle import NOT_DONE, Ending, Run
from saycan_qt.journey.person import Person
from saycan_qt.journey.recording import Recorder
from saycan_qt.journey.report import write_report
from saycan_qt.journey.results import Candidate, NotWritten, RunFolder, Step, new_folder, vetoes
from skills.types import Observation, Outcome, Status


def jpeg(colour):
    data = io.BytesIO()
    Image.new("RGB", (320, 256), colour).save(data, "JPEG")
    return data.getvalue()


def begin(folder, number, skill="pick apple"):
    observation = Observation(np.full((80, 96, 3), 7, np.uint8), np.zeros(8, np.float32), "table")
    observed, views = folder.save_pictures(
        f"step-{number:02d}", observation, {"head": jpeg("red"), "room": jpeg("blue")}
    )
    rows = [Candidate(skill, "pick up the apple", 0.5, 0.8, 0.4), Candidate("done", "<done>", 0.1, 0.5, 0.05)]
    folder.begin(
        Step(number, skill, "pick up the apple", 0.5, 0.8, 0.4, observation=observed, views=views, candidates=rows)
    )


def plan(folder):
    return json.loads((folder.path / "plan.json").read_text())


@pytest.fixture
def finished(tmp_path):
    folder = RunFolder(tmp_path / "run", "fetch <me> an apple", 3)
    with_video = Recorder(folder.path / "run.mp4")
    with_video.begin(("head", "room"), 3)
    begin(folder, 1)
    with_video.add({"head": jpeg("red"), "room": jpeg("blue")}, "1. pick up the apple", seconds=1.0)
    folder.end(Outcome(Status.FAILED, "nothing is held", steps=45), 15.2)
    folder.finish(False, "the goal is not met after 1 skill", "max steps", "goal")
    with_video.close()
    folder.add_files(video="run.mp4", report="report.html")
    write_report(folder.path)
    return folder


def test_plan_json_tells_every_step_while_the_run_goes_on(tmp_path):
    folder = RunFolder(tmp_path, "fetch an apple", 3)
    begin(folder, 1)
    assert plan(folder)["steps"][0]["outcome"] == "running"
    folder.end(Outcome(Status.SUCCEEDED, steps=12), 4.0)
    begin(folder, 2)
    first, second = plan(folder)["steps"]
    assert (first["outcome"], first["seconds"], second["outcome"]) == ("succeeded", 4.0, "running")
    assert {"skill", "language", "affordance", "score", "outcome", "seconds", "candidates"} <= first.keys()


def test_words_that_look_like_a_place_for_a_row_stay_words(tmp_path):
    folder = RunFolder(tmp_path, "@row 0@", 3)
    begin(folder, 1)
    assert plan(folder)["instruction"] == "@row 0@" and plan(folder)["steps"][0]["candidates"][0]["score"] == 0.4


def test_a_step_cut_short_is_aborted_and_nothing_changes_after_the_end(tmp_path):
    folder = RunFolder(tmp_path, "fetch an apple", 3)
    begin(folder, 1)
    folder.finish(False, "the kitchen robot died", "died")
    folder.end(Outcome(Status.SUCCEEDED), 4.0)
    folder.finish(True, "too late", "done")
    found = plan(folder)
    assert (found["steps"][0]["outcome"], found["success"], found["reason"]) == (
        "aborted",
        False,
        "the kitchen robot died",
    )


def test_a_veto_is_where_one_score_was_better_than_the_chosen_skills_and_the_other_worse():
    def row(name, language, affordance):
        return Candidate(name, name, language, affordance, (language or 0) * affordance)

    rows = [
        *(row("chosen", 0.3, 0.9), row("impossible", 0.5, 0.1), row("silly", 0.01, 1.0), row("dull", 0.1, 0.9)),
        *(row("poor", 0.1, 0.1), row("unscored", None, 0.0)),
    ]
    by_affordance, by_language = vetoes(rows)
    assert [r.skill for r in by_affordance] == ["impossible"]
    assert [r.skill for r in by_language] == ["silly", "dull"]


def test_the_pictures_named_in_plan_json_are_there(finished):
    step = plan(finished)["steps"][0]
    for file, size in ((step["observation"], (96, 80)), (step["views"]["room"], (320, 256))):
        with Image.open(finished.path / file) as picture:
            assert picture.size == size


def test_a_new_folder_never_takes_a_name_that_exists(tmp_path):
    """nor that of a run that begins at the same moment"""
    taken, other = (new_folder("Bring me a snack!", tmp_path) for _ in range(2))
    assert taken.name.endswith("bring-me-a-snack") and other != taken and taken.is_dir() and other.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(NotWritten):
        new_folder("x", tmp_path / "file")


def test_the_video_plays_and_shows_both_views(finished):
    with av.open(str(finished.path / "run.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 6
    left, right = frames[-1][100, 100], frames[-1][100, 500]
    assert left[0] > 200 > 100 > left[2]
    assert right[2] > 200 > 100 > right[0]


def test_a_view_that_is_no_picture_or_a_bomb_costs_its_picture_only(tmp_path):
    recorder = Recorder(tmp_path / "run.mp4")
    recorder.begin(("head", "room"), 3)
    recorder.add({"head": b"no jpeg", "room": bombs.many_scans(4096, 3000)}, "1. look", seconds=0.5)
    recorder.close()
    assert recorder.frames > 0


def test_a_disk_that_is_full_costs_the_video_and_leaves_no_half_of_a_file(tmp_path, caplog):
    with small_disk.mounted(tmp_path / "disk", 64_000) as disk:
        recorder = Recorder(disk / "run.mp4")
        recorder.begin(("head",), 3)
        small_disk.fill(disk)
        for i in range(40):
            noise = Image.fromarray(np.random.default_rng(i).integers(0, 255, (256, 320, 3), np.uint8))
            noise.save(data := io.BytesIO(), "JPEG")
            recorder.add({"head": data.getvalue()}, "noise")
        recorder.close()
        recorder.close()
        assert recorder.frames == 0 and not (disk / "run.mp4").exists()
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warning.startswith("there is no video: ") and warning.endswith(": No space left on device")


def test_what_cannot_be_written_leaves_what_was_there(tmp_path):
    with small_disk.mounted(tmp_path / "disk", 3_000_000) as disk:
        folder = RunFolder(disk / "run", "fetch an apple", 3)
        begin(folder, 1)
        small_disk.fill(disk)
        with pytest.raises(NotWritten, match="No space left"):
            begin(folder, 2)
        before = {path.name for path in folder.path.rglob("*")}
        assert plan(folder)["steps"][0]["outcome"] == "running" and len(plan(folder)["steps"]) == 1
        folder.finish(False, "the disk is full", "error")
        assert plan(folder)["ended"] == "error" and "step-02-head.jpg" not in before
        assert not [path for path in folder.path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("lost", [shutil.rmtree, small_disk.lock])
def test_results_that_go_away_cost_themselves_alone(tmp_path, capsys, lost):
    with small_disk.mounted(tmp_path / "disk", 3_000_000) as disk:
        config, folder = RunConfig("fetch an apple"), RunFolder(disk / "run", "fetch an apple", 3)
        display = Display(Console(file=io.StringIO()))
        person, stack = Person(display.console, piped=False), SimpleNamespace(display=display)
        run = Run(config.instruction, config, stack, folder, person, alone=False)
        lost(folder.path)
        run._close(Ending(NOT_DONE, "error", "it broke"))
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "error: it broke" and "tells nothing of the end" in second and "results are missing in" in third
    assert folder.finished and folder.content()["ended"] == "error"


def test_a_recording_without_frames_leaves_no_file(tmp_path):
    recorder = Recorder(tmp_path / "run.mp4")
    recorder.close()
    recorder.add({}, "too late")
    assert not list(tmp_path.iterdir())


def inside(page):
    """What the report was given to show."""
    return json.loads(re.search(r'<script id="boot" type="application/json">(.*?)</script>', page, re.DOTALL)[1])


def test_the_report_needs_nothing_but_itself(finished):
    page = (finished.path / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|@import""", page)
    files = inside(page)["files"]
    assert sorted(files) == ["pictures/step-01-head.jpg", "pictures/step-01-room.jpg", "run.mp4"]
    assert all(content.startswith(("data:image/jpeg;", "data:video/mp4;")) for content in files.values())


def test_the_report_shows_words_as_they_were_said(finished):
    """In a browser, see test_browser.py; here: they end no script."""
    page = (finished.path / "report.html").read_text()
    assert inside(page)["plan"]["instruction"] == "fetch <me> an apple" and "<me>" not in page


def test_a_large_video_is_linked_beside_the_report(finished, monkeypatch):
    monkeypatch.setattr("saycan_qt.journey.report.INLINED_VIDEO", 10)
    page = write_report(finished.path).read_text()
    assert "data:video" not in page and inside(page)["files"]["run.mp4"] == "run.mp4"
