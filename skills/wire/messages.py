"""Types <-> protobuf, the one place where a message is validated: every `read_*` raises InvalidRequest, nothing else.

Images are checked against their stated size, and that against what the model takes, before they are decoded; numbers
must be finite, shapes must fit, texts are of one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import cast, get_args

import numpy as np
from PIL import Image as PillowImage

from skills.embodiment import LARGEST, MAX_SECONDS, MOST_SENT, ActionDimension, Camera, Embodiment, Kind, StateNumber
from skills.errors import EmbodimentError, InvalidRequest
from skills.library import Skill
from skills.types import Observation, Outcome, Status, looked_at
from skills.v1 import skills_pb2 as pb
from skills.wire import pictures
from skills.wire.conventions import CONTROL, MAX_MESSAGE, plain

MAX_SIDE = 4096  # [pixels]
MAX_PIXELS = 1 << 22  # of an image whose model takes fewer: 1920 x 1080 is half of that
MAX_SCANS = 4  # of a JPEG, which has three where its channels lie apart
MAX_HISTORY = 64  # [observations] in one request
MAX_TEXT = 1000  # [characters] in any name, instruction or place
MAX_OBJECTS = 1000  # in a semantic map
MAX_NUMBERS = LARGEST  # of a state or an action
MAX_CHUNK = 1024  # actions in a chunk
JPEG_QUALITY = 90
RAW, PNG, JPEG = pb.IMAGE_ENCODING_RAW, pb.IMAGE_ENCODING_PNG, pb.IMAGE_ENCODING_JPEG
FORMATS = {PNG: "PNG", JPEG: "JPEG"}  # as Pillow calls them
KINDS: dict[str, pb.ActionKind] = {kind: pb.ActionKind.Value(f"ACTION_KIND_{kind.upper()}") for kind in get_args(Kind)}

# Writing


def write_image(image: np.ndarray, encoding: pb.ImageEncoding = RAW) -> pb.Image:
    """(H, W, 3) uint8 RGB -> message. RAW and PNG keep every bit; JPEG is for people."""
    image = np.ascontiguousarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InvalidRequest(f"an image is (H, W, 3) uint8, not {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    data = image.tobytes() if encoding == RAW else compress(image, encoding)
    return pb.Image(encoding=encoding, width=width, height=height, data=data)


def write_jpeg(data: bytes) -> pb.Image:
    """The bytes of a JPEG file -> message, as they are; InvalidRequest for what is none."""
    try:
        with PillowImage.open(io.BytesIO(data), formats=["JPEG"]) as picture:  # reads the header only
            width, height = picture.size
    except Exception as error:
        raise InvalidRequest(f"what should be a JPEG cannot be read ({type(error).__name__})") from None
    return pb.Image(encoding=JPEG, width=width, height=height, data=data)


def compress(image: np.ndarray, encoding: pb.ImageEncoding) -> bytes:
    """(H, W, 3) uint8 RGB -> the bytes of a PNG or JPEG file."""
    buffer = io.BytesIO()
    options = {"compress_level": 1} if encoding == PNG else {"quality": JPEG_QUALITY}
    PillowImage.fromarray(image).save(buffer, FORMATS[encoding], **options)
    return buffer.getvalue()


def write_tensor(values: np.ndarray) -> pb.Tensor:
    values = np.asarray(values, "<f4")
    return pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, shape=values.shape, data=values.tobytes())


def write_chunk(actions: np.ndarray, period: float | None) -> pb.Chunk:
    """(N, D) -> message; period: [s], None: not known."""
    return pb.Chunk(actions=write_tensor(actions), period=period or 0.0)


def write_observation(observation: Observation, encoding: pb.ImageEncoding = RAW) -> pb.Observation:
    """Lossless unless told otherwise: a policy must see the pixels that the camera gave."""
    message = pb.Observation(
        state=write_tensor(observation.state),
        place=observation.place,
        held=observation.held,
        objects=dict(observation.objects),
        states=dict(observation.states),
    )
    for number, (name, image) in enumerate(observation.images.items()):
        written = write_image(image, encoding)
        if number == 0:  # where services of before there were several look for it
            message.image.CopyFrom(written)
            message.camera = name
        else:
            message.images[name].CopyFrom(written)
    return message


def terms_of(embodiment: Embodiment | None, chunk: int) -> str:
    """A digest of what a robot agrees upon with a model: a control stream tells it beside its first answer."""
    said = write_embodiment(embodiment).SerializeToString(deterministic=True) if embodiment else b""
    return hashlib.sha256(said + b" %d" % chunk).hexdigest()[:32]


def write_embodiment(embodiment: Embodiment) -> pb.Embodiment:
    return pb.Embodiment(
        name=embodiment.name,
        cameras=[pb.Camera(name=c.name, height=c.height, width=c.width) for c in embodiment.cameras],
        state=[pb.StateNumber(name=number.name, unit=number.unit) for number in embodiment.state],
        action=[
            pb.ActionDimension(name=d.name, low=d.low, high=d.high, unit=d.unit, kind=KINDS[d.kind])
            for d in embodiment.action
        ],
        control_hz=embodiment.control_hz,
        max_seconds=embodiment.max_seconds,
        history=embodiment.history,
    )


def write_skill(skill: Skill) -> pb.Skill:
    return pb.Skill(
        name=skill.name, family=skill.family, text=skill.text, arguments=dict(skill.arguments), learned=skill.learned
    )


def write_outcome(outcome: Outcome) -> pb.Outcome:
    status = pb.Status.Value(f"STATUS_{outcome.status.name}")
    return pb.Outcome(status=status, message=outcome.message, steps=outcome.steps, seconds=outcome.seconds)


# Reading


@contextlib.contextmanager
def inside(field: str) -> Iterator[None]:
    """What is wrong in here is wrong in this field: an InvalidRequest that leaves has it before its own `field`."""
    try:
        yield
    except InvalidRequest as error:
        error.field = f"{field}.{error.field}".rstrip(".")
        raise


def read_image(message: pb.Image, what: str = "the image", camera: Camera | None = None) -> np.ndarray:
    """Message -> (H, W, 3) uint8 RGB of its own memory.

    camera: as the model has it. An image may be larger, up to four million pixels (MAX_PIXELS): what a robot's camera
    gives, such as 1920 x 1080 to a model of 96 x 80, but nothing that is only there to be decoded."""
    check_size(message, what, camera)
    width, height, data = message.width, message.height, message.data
    if message.encoding == RAW:
        if len(data) != width * height * 3:
            raise InvalidRequest(f"{what}: {width}x{height} raw RGB takes {width * height * 3} bytes, not {len(data)}")
        return np.frombuffer(data, np.uint8).reshape(height, width, 3).copy()
    if message.encoding not in FORMATS:
        raise InvalidRequest(f"{what} has no known encoding ({message.encoding}); use RAW, PNG or JPEG")
    kind = FORMATS[message.encoding]
    try:
        picture = pictures.look(data)
    except ValueError as error:
        raise InvalidRequest(f"{what} is not a readable {kind}: it {error}") from None
    if picture.kind != kind:
        raise InvalidRequest(f"{what} is not a readable {kind}: it is a {picture.kind}")
    size = picture.width, picture.height
    if size != (width, height):
        raise InvalidRequest(f"{what} states {width}x{height} pixels, its {kind} has {size}")
    if picture.progressive:  # a few kilobytes of scans can keep a processor busy for minutes
        raise InvalidRequest(f"{what} is a progressive JPEG; send a baseline one, RAW or PNG")
    if problem := picture.problem(MAX_SCANS):
        raise InvalidRequest(f"{what} {problem}")
    if (picture.bits, picture.colours) != (8, "RGB"):
        raise InvalidRequest(f"{what} must be 8-bit RGB, its {kind} is {picture.bits}-bit and {picture.colours}")
    try:
        return picture.pixels()
    except Exception as error:  # Pillow raises many kinds for broken files; all of them are the sender's
        raise InvalidRequest(f"{what} is not a readable {kind} ({type(error).__name__})") from None


def check_size(message: pb.Image, what: str, camera: Camera | None) -> None:
    """Raises InvalidRequest for a stated size that `read_image` does not take."""
    width, height = message.width, message.height
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InvalidRequest(f"{what} states {width}x{height} pixels; each side must be 1 to {MAX_SIDE}")
    if camera is not None and width * height > max(MAX_PIXELS, camera.width * camera.height):
        wants = f"{camera.width}x{camera.height}"
        raise InvalidRequest(
            f"{what} states {width}x{height} pixels, and this model takes {wants}; at most {MAX_PIXELS:,} pixels are "
            "made smaller here"
        )


def read_tensor(message: pb.Tensor, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Message -> float32 array of that very shape, all numbers finite."""
    if message.dtype != pb.DATA_TYPE_FLOAT32:
        raise InvalidRequest(f"{what} has no known data type ({message.dtype}); use FLOAT32")
    if tuple(message.shape) != shape:
        raise InvalidRequest(f"{what} has shape {tuple(message.shape)}, not {shape}")
    if len(message.data) != 4 * math.prod(shape):
        raise InvalidRequest(f"{what}: shape {shape} takes {4 * math.prod(shape)} bytes, not {len(message.data)}")
    values = np.frombuffer(message.data, "<f4").astype(np.float32).reshape(shape)
    if not np.isfinite(values).all():
        raise InvalidRequest(f"{what} has a number that is not finite")
    return values


def read_numbers(message: pb.Tensor, what: str, most: int = MAX_NUMBERS) -> np.ndarray:
    """Message -> (N,) float32, all numbers finite; whoever uses them knows how many there must be."""
    if len(message.shape) != 1 or message.shape[0] > most:
        raise InvalidRequest(f"{what} has shape {tuple(message.shape)}; it is one row of at most {most} numbers")
    return read_tensor(message, tuple(message.shape), what)


def read_state(message: pb.Tensor) -> np.ndarray:
    return read_numbers(message, "the state")


def read_action(message: pb.Tensor) -> np.ndarray:
    return read_numbers(message, "the action")


def read_actions(message: pb.Tensor, what: str = "the chunk") -> np.ndarray:
    """Message -> (N, D) float32, all numbers finite, N from 1 to MAX_CHUNK."""
    shape = tuple(message.shape)
    if len(shape) != 2 or not (1 <= shape[0] <= MAX_CHUNK and 1 <= shape[1] <= MAX_NUMBERS):
        raise InvalidRequest(f"{what} has shape {shape}; it is 1 to {MAX_CHUNK} rows of 1 to {MAX_NUMBERS} numbers")
    return read_tensor(message, shape, what)


def read_embodiment(message: pb.Embodiment) -> Embodiment:
    kinds = {number: kind for kind, number in KINDS.items()}
    if unknown := [d.name for d in message.action if d.kind not in kinds]:
        raise InvalidRequest(f"the action dimension {unknown[0][:50]!r} is of no known kind")
    try:
        return Embodiment(
            action=tuple(
                ActionDimension(d.name, d.low, d.high, d.unit, cast(Kind, kinds[d.kind])) for d in message.action
            ),
            cameras=tuple(Camera(c.name, c.height, c.width) for c in message.cameras),
            state=tuple(StateNumber(number.name, number.unit) for number in message.state),
            control_hz=message.control_hz,
            max_seconds=message.max_seconds or MAX_SECONDS,
            history=message.history or 1,
            name=message.name,
        )
    except EmbodimentError as error:
        raise InvalidRequest(f"the embodiment: {error}") from None


def read_text(text: str, what: str, required: bool = True) -> str:
    if required and not text.strip():
        raise InvalidRequest(f"{what} is empty")
    if len(text) > MAX_TEXT:
        raise InvalidRequest(f"{what} has {len(text)} characters; at most {MAX_TEXT}")
    if CONTROL.search(text):
        raise InvalidRequest(f"{what} has a control character: {plain(text)[:100]!r}; it is one line of text")
    return text


def read_observation(
    message: pb.Observation, cameras: Sequence[Camera] | None = None, room: int = MAX_MESSAGE
) -> Observation:
    """cameras: those that the model looks at; images of others are not decoded. None: all are. room: [bytes] that the
    images may take once decoded."""
    images = read_images(message, cameras, room)
    with inside("state"):
        state = read_state(message.state)
    with inside("place"):
        place = read_text(message.place, "the place", required=False)
    with inside("held"):
        held = read_text(message.held, "the object held", required=False)
    with inside("objects"):
        objects = _read_map(message.objects, "the semantic map", "place")
    with inside("states"):
        states = _read_map(message.states, "what is told of things", "state")
    return Observation(images, state, place, held, objects, states)


def _read_map(given: Mapping[str, str], what: str, of: str) -> dict[str, str]:
    """Things, each with its place or state."""
    if len(given) > MAX_OBJECTS:
        raise InvalidRequest(f"{what} has {len(given)} objects; at most {MAX_OBJECTS}")
    return {
        read_text(name, "an object"): read_text(told, f"the {of} of {name[:50]!r}", required=False)
        for name, told in given.items()
    }


def read_images(
    message: pb.Observation, cameras: Sequence[Camera] | None = None, room: int = MAX_MESSAGE
) -> dict[str, np.ndarray]:
    """Camera -> (H, W, 3) uint8 RGB, the first one first, or the model's in its order; "" names an only one that has no
    name. Nothing is decoded before all sizes are known to do."""
    if len(message.images) + message.HasField("image") > MOST_SENT:
        raise InvalidRequest(f"{len(message.images) + 1} images; at most {MOST_SENT} cameras are taken", "images")
    sent: dict[str, tuple[pb.Image, str, str]] = {}  # the image, its field, and what to call it
    if message.HasField("image"):
        with inside("camera"):
            name = read_text(message.camera, "the camera", required=False)
        sent[name] = message.image, "image", "the image"
    for name in sorted(message.images):  # a map has no order
        shown = repr(name[:50])
        with inside(f"images[{shown}]"):
            if not sent or not name or name in sent:
                raise InvalidRequest("`image` and `camera` hold the first camera, `images` the others by their names")
            sent[read_text(name, "a camera")] = message.images[name], f"images[{shown}]", f"the image of {shown}"
    by_name = {camera.name: camera for camera in cameras or ()}
    names = dict(zip(sent, sent, strict=True)) if cameras is None else looked_at(list(sent), list(by_name))
    for name, its in names.items():
        image, where, what = sent[its]
        with inside(where):
            check_size(image, what, by_name.get(name))
        room -= image.width * image.height * 3
    if room < 0:
        raise InvalidRequest(f"the images take more than {MAX_MESSAGE >> 20} MiB once decoded", "images")
    found = {}
    for name, its in names.items():
        image, where, what = sent[its]
        with inside(where):
            found[name] = read_image(image, what, by_name.get(name))
    return found


def read_history(messages: Sequence[pb.Observation], cameras: Sequence[Camera] | None = None) -> list[Observation]:
    """A request's `history`: oldest first; all images of one size, and once decoded no larger than a message may be.
    cameras: as of `read_observation`."""
    if not 1 <= len(messages) <= MAX_HISTORY:
        raise InvalidRequest(f"the history has {len(messages)} observations; 1 to {MAX_HISTORY} are allowed", "history")
    history: list[Observation] = []
    room = MAX_MESSAGE
    for index, message in enumerate(messages):
        with inside(f"history[{index}]"):
            history.append(read_observation(message, cameras, room))
        room -= sum(image.nbytes for image in history[-1].images.values())
    if problem := changed(history):
        raise InvalidRequest(problem, "history")
    return history


def changed(history: Sequence[Observation]) -> str:
    """What is not the same in all observations of one history; "" where nothing is."""
    cameras = {name: image.shape for name, image in history[0].images.items()}
    for later in history[1:]:
        sizes = {name: image.shape for name, image in later.images.items()}
        if sizes.keys() != cameras.keys():
            return f"the cameras of one history differ: {sorted(cameras)} and {sorted(sizes)}"
        if differing := [name for name in sizes if sizes[name] != cameras[name]]:
            shapes = sorted({cameras[differing[0]], sizes[differing[0]]})
            return f"the images of one history differ in size: {shapes}"
        if later.state.shape != history[0].state.shape:
            return f"the states of one history differ in length: {len(history[0].state)} and {len(later.state)}"
    return ""


def read_skill(message: pb.Skill) -> Skill:
    """With its arguments in the order in which its name has them: a map on the wire has none."""
    given = sorted(message.arguments.items(), key=lambda argument: (message.name.find(argument[1]), argument))
    return Skill(
        name=read_text(message.name, "the skill's name"),
        family=read_text(message.family, "the skill's family"),
        text=read_text(message.text, "the skill's text", required=False),
        arguments={slot: read_text(value, f"{slot[:50]!r}", required=False) for slot, value in given},
        learned=message.learned,
    )


def read_outcome(message: pb.Outcome) -> Outcome:
    try:
        status = Status[pb.Status.Name(message.status).removeprefix("STATUS_")]
    except (KeyError, ValueError):
        raise InvalidRequest(f"the outcome has no known status ({message.status})") from None
    if not math.isfinite(message.seconds):
        raise InvalidRequest(f"the outcome took {message.seconds} seconds")
    return Outcome(status, plain(message.message[:MAX_TEXT]), message.steps, message.seconds)


def read_views(views: Mapping[str, pb.Image]) -> dict[str, bytes]:
    """The JPEG bytes of each view, as they came: they are shown or stored, not computed with."""
    for name, view in views.items():
        if view.encoding != JPEG or not view.data:
            raise InvalidRequest(f"view {name!r} is not a JPEG")
    return {name: view.data for name, view in views.items()}
