"""Types <-> protobuf: what goes out comes back, and what is malformed is refused as InvalidRequest."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from skills.errors import InvalidRequest
from skills.generate import ROOT, generate
from skills.library import SkillLibrary
from skills.types import Observation, Outcome, Status
from skills.v1 import skills_pb2 as pb
from skills.wire import messages

NOISE = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
SEEN = Observation(NOISE, np.arange(8, dtype=np.float32), "table", "tea", {"apple": "far counter"})


@pytest.mark.parametrize("encoding", [messages.RAW, messages.PNG])
def test_an_observation_survives_the_wire_bit_for_bit(encoding):
    sent = messages.write_observation(SEEN, encoding).SerializeToString()
    seen = messages.read_observation(pb.Observation.FromString(sent))
    np.testing.assert_array_equal(seen.image, SEEN.image)
    np.testing.assert_array_equal(seen.state, SEEN.state)
    assert (seen.place, seen.held, seen.objects) == ("table", "tea", {"apple": "far counter"})


def test_a_jpeg_keeps_a_smooth_picture_to_within_a_few_levels():
    ramp = np.repeat(np.linspace(0, 255, 96, dtype=np.uint8)[None, :, None], 80, 0).repeat(3, 2)
    seen = messages.read_image(messages.write_image(ramp, messages.JPEG))
    assert np.abs(seen.astype(int) - ramp).max() <= 4


def test_skills_and_outcomes_survive_the_wire():
    for skill in SkillLibrary.load():
        assert messages.read_skill(messages.write_skill(skill)) == skill
    for status in Status:
        outcome = Outcome(status, "because", 7, 1.5)
        assert messages.read_outcome(messages.write_outcome(outcome)) == outcome


PROGRESSIVE = io.BytesIO()
PillowImage.new("RGB", (8, 8)).save(PROGRESSIVE, "JPEG", progressive=True)


def image(**changes):
    message = messages.write_image(NOISE, changes.pop("encoding", messages.RAW))
    message.MergeFrom(pb.Image(**changes))
    return message


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.Image(), "states 0x0 pixels"),
        (image(width=97), "takes 23280 bytes, not 23040"),
        (image(width=1_000_000), "each side must be 1 to 4096"),
        (image(encoding=messages.PNG, width=97), "its PNG has"),  # the header is enough to refuse it
        (pb.Image(encoding=messages.JPEG, width=96, height=80, data=b"not a jpeg"), "not a readable JPEG"),
        (image(encoding=messages.PNG, data=messages.compress(NOISE, messages.PNG)[:900]), "not a readable PNG"),
        (pb.Image(width=1, height=1, data=b"abc"), "no known encoding"),
        (pb.Image(encoding=messages.JPEG, width=8, height=8, data=PROGRESSIVE.getvalue()), "a progressive JPEG"),
    ],
)
def test_a_malformed_image_is_refused(message, reason):
    with pytest.raises(InvalidRequest, match=reason):
        messages.read_image(message)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.state.ClearField("shape"), "has shape"),
        (lambda m: setattr(m.state, "data", m.state.data[:-1]), "takes 32 bytes, not 31"),
        (lambda m: setattr(m.state, "dtype", 0), "no known data type"),
        (lambda m: setattr(m.state, "data", np.full(8, np.nan, "<f4").tobytes()), "not finite"),
        (lambda m: setattr(m, "place", "x" * 1001), "1001 characters"),
    ],
)
def test_a_malformed_observation_is_refused(change, reason):
    message = messages.write_observation(SEEN)
    change(message)
    with pytest.raises(InvalidRequest, match=reason):
        messages.read_observation(message)


@pytest.mark.parametrize("length", [0, messages.MAX_HISTORY + 1])
def test_a_history_is_neither_empty_nor_endless(length):
    with pytest.raises(InvalidRequest, match="history"):
        messages.read_history([messages.write_observation(SEEN)] * length)


def test_an_outcome_took_a_finite_time():
    with pytest.raises(InvalidRequest, match="took nan seconds"):
        messages.read_outcome(pb.Outcome(status=pb.STATUS_FAILED, seconds=float("nan")))


def test_the_committed_stubs_are_what_the_proto_generates(tmp_path):
    """Compared without what differs between versions of the tools: versions, type hints, `(object)`."""
    pytest.importorskip("grpc_tools")

    def essence(path: Path) -> str:
        return re.sub(
            r"\(object\)|^# Protobuf Python.*|^    \d+,|^GRPC_GENERATED_VERSION.*", "", path.read_text(), flags=re.M
        )

    for path in generate(tmp_path):
        if path.suffix == ".py":
            assert essence(path) == essence(ROOT / path.relative_to(tmp_path)), "run `python -m skills.generate`"
