"""Types <-> protobuf: what goes out comes back, and what is malformed is refused as InvalidRequest."""

import io
import re
import struct
import time
import zlib
from pathlib import Path

import bombs
import numpy as np
import pytest
from PIL import Image as PillowImage

from skills.embodiment import Camera
from skills.errors import InvalidRequest
from skills.generate import ROOT, generate
from skills.library import SkillLibrary
from skills.types import Observation, Outcome, Status
from skills.v1 import skills_pb2 as pb
from skills.wire import messages, pictures

NOISE = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
STATES = {"top drawer": "open"}
SEEN = Observation(NOISE, np.arange(8, dtype=np.float32), "table", "tea", {"apple": "far counter"}, STATES)


@pytest.mark.parametrize("encoding", [messages.RAW, messages.PNG])
def test_an_observation_survives_the_wire_bit_for_bit(encoding):
    sent = messages.write_observation(SEEN, encoding).SerializeToString()
    seen = messages.read_observation(pb.Observation.FromString(sent))
    np.testing.assert_array_equal(seen.image, SEEN.image)
    np.testing.assert_array_equal(seen.state, SEEN.state)
    assert (seen.place, seen.held, seen.objects) == ("table", "tea", {"apple": "far counter"})
    assert seen.states == STATES


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


def file(kind, mode="RGB", size=(8, 8), **options):
    buffer = io.BytesIO()
    PillowImage.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def turned(kind, orientation):
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    return file(kind, exif=exif)


def deep_png():
    """8 x 8, RGB of 16 bits, which Pillow reads as if it had 8."""
    rows = zlib.compress(bytes(8 * (1 + 8 * 6)))
    chunks = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")
    return pictures.SIGNATURE + b"".join(chunk(*each) for each in chunks)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def message_of(encoding, data, side=8):
    return pb.Image(encoding=encoding, width=side, height=side, data=data)


BOMB = message_of(messages.JPEG, bombs.many_scans(4096, 3000), 4096)
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
        (message_of(messages.PNG, deep_png()), "is a 16-bit PNG; 8 bits a channel"),
        (message_of(messages.PNG, file("PNG", "I;16")), "is a 16-bit PNG"),
        (message_of(messages.PNG, file("PNG", "RGBA")), "must be 8-bit RGB, its PNG is 8-bit and RGB with transp"),
        (message_of(messages.JPEG, file("JPEG", "L")), "must be 8-bit RGB, its JPEG is 8-bit and grey"),
        (message_of(messages.JPEG, turned("JPEG", 6)), r"stored turned \(EXIF orientation 6\)"),
        (message_of(messages.PNG, turned("PNG", 3)), r"stored turned \(EXIF orientation 3\)"),
        (message_of(messages.JPEG, file("PNG")), "not a readable JPEG: it is a PNG"),
        (BOMB, "JPEG of 3000 scans; at most 4"),
        (message_of(messages.JPEG, b"\xff\xd8" + b"\xff\xfe\0\2" * 20_000), "more than 10,000 segments"),
        (message_of(messages.PNG, pictures.SIGNATURE + chunk(b"IHDR", bytes(13)) * 20_000), "more than 10,000 chunks"),
    ],
)
def test_a_malformed_image_is_refused(message, reason):
    with pytest.raises(InvalidRequest, match=reason):
        messages.read_image(message)


def test_a_bomb_is_refused_in_milliseconds():
    assert len(BOMB.data) < 40_000
    started = time.monotonic()
    with pytest.raises(InvalidRequest):
        messages.read_image(BOMB)
    assert time.monotonic() - started < 0.2


def test_what_is_not_the_picture_never_reaches_the_decoder():
    """A text that inflates to 60 MB, profiles that do, and a preview inside EXIF with scans of its own."""
    text, profile = b"a\0\0" + zlib.compress(bytes(60_000_000)), b"p\0\0" + zlib.compress(bytes(60_000_000))
    png = messages.compress(NOISE, messages.PNG)
    png = png[:33] + (chunk(b"zTXt", text) + chunk(b"iCCP", profile)) * 20 + png[33:]
    jpeg = messages.compress(NOISE, messages.JPEG)
    preview = b"Exif\0\0II*\0\0\0\0\0" + b"\xff\xda" * 100
    noted = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview + jpeg[2:]

    def read(kind, data):
        return messages.read_image(pb.Image(encoding=kind, width=96, height=80, data=data))

    np.testing.assert_array_equal(read(messages.PNG, png), NOISE)
    np.testing.assert_array_equal(read(messages.JPEG, noted), read(messages.JPEG, jpeg))
    assert len(pictures.look(png).bare) < 30_000 and len(pictures.look(noted).bare) == len(jpeg)


@pytest.mark.parametrize(
    "options", [{}, {"quality": 100, "subsampling": 0}, {"restart_marker_blocks": 1}, {"optimize": True}]
)
def test_the_pictures_of_ordinary_cameras_are_read(options):
    buffer = io.BytesIO()
    PillowImage.fromarray(NOISE).save(buffer, "JPEG", **options)
    with PillowImage.open(io.BytesIO(buffer.getvalue())) as there:
        seen = messages.read_image(pb.Image(encoding=messages.JPEG, width=96, height=80, data=buffer.getvalue()))
        np.testing.assert_array_equal(seen, np.array(there))


def test_a_picture_may_be_larger_than_the_model_takes_within_reason():
    small, own = Camera("front", 80, 96), Camera("front", 4000, 4000)
    for width, height in ((1920, 1080), (2048, 2048)):
        sent = messages.write_image(np.zeros((height, width, 3), np.uint8), messages.PNG)
        assert messages.read_image(sent, camera=small).shape == (height, width, 3)
    sent = messages.write_image(np.zeros((4000, 4000, 3), np.uint8))
    assert messages.read_image(sent, camera=own).shape == (4000, 4000, 3)
    with pytest.raises(InvalidRequest, match="states 4000x4000 pixels, and this model takes 96x80"):
        messages.read_image(sent, camera=small)


def test_a_camera_that_the_model_does_not_look_at_is_not_decoded():
    seen = messages.write_observation(Observation({"front": NOISE, "wrist": NOISE}, np.zeros(1, np.float32)))
    seen.image.data = b"broken"
    assert list(messages.read_observation(seen, [Camera("wrist", 80, 96)]).images) == ["wrist"]
    with pytest.raises(InvalidRequest, match="takes 23040 bytes"):
        messages.read_observation(seen)


def test_sixteen_cameras_are_refused_by_their_size_before_any_is_decoded():
    seen = messages.write_observation(Observation({str(i): NOISE for i in range(16)}, np.zeros(1, np.float32)))
    for image in (seen.image, *seen.images.values()):
        image.width = image.height = 4096
    with pytest.raises(InvalidRequest, match="more than 64 MiB once decoded"):
        messages.read_observation(seen)


@pytest.mark.parametrize("text", ["two\nlines", "\x1b[2J", "a\x7f", "a\u2028b", "\u202eevil"])
def test_a_text_is_one_line_that_commands_no_terminal(text):
    with pytest.raises(InvalidRequest, match="the place has a control character") as caught:
        messages.read_text(text, "the place")
    assert str(caught.value).isprintable()
    assert messages.read_outcome(pb.Outcome(status=pb.STATUS_FAILED, message=text)).message.isprintable()


def test_a_text_may_be_of_any_language():
    for text in ("n\u00e4her ans Fenster", "\u062e\u0627\u0646\u0647\u200c\u0647\u0627", "\u53f0\u6240\u3000\u3067"):
        assert messages.read_text(text, "the instruction") == text


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
