"""Which of openpi's keys hold what: a robot's cameras, its state, and what it is asked to do.

    keys = Keys.of(embodiment)                             # by the names of its cameras
    keys = Keys.of(embodiment, {"observation/exterior_image_1_left": "front", "observation/joint_position": ["q1"]})
    observation, instruction = keys.read(message)          # raises InvalidRequest, which names the key
    message = keys.write(observation, instruction)

Where nothing else is said: the first camera without `wrist` in its name is `observation/image`, the first with it
`observation/wrist_image`, any further one `observation/NAME`; the whole state is `observation/state`; the instruction
is `prompt`. Read, but not sent, are `observation/NAME` and `images/NAME` of every camera, and `state`. Of two
cameras for one key, the one of that NAME has it; of a camera and the state, the state.

A key with a dot, such as `images.cam_high`, is one in a map of its own, and its image has its channels first, as those
of openpi's ALOHA. What is read may lie in maps or not, and may have its channels first or last.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from skills.embodiment import MAX_SIDE, PROPORTIONS, Camera, Embodiment
from skills.errors import EmbodimentError, InvalidRequest
from skills.types import Observation
from skills.wire.messages import read_text

PROMPT, STATE = "prompt", "state"
SIDE = 224  # [pixels] that openpi's models see
Named = Mapping[str, str | Sequence[str]]  # key -> a camera, or "state", or names of numbers of the state


def is_openpi(name: str) -> bool:
    """Is it a server's name, rather than a checkpoint's or a class's?"""
    return name.startswith(("openpi://", "openpis://"))


@dataclass(frozen=True)
class Keys:
    """The first of several keys is sent, any is read."""

    embodiment: Embodiment
    images: Mapping[str, tuple[str, ...]]  # camera -> keys; a camera that is not here is not sent
    state: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]  # keys, and which numbers of the state they hold

    @classmethod
    def of(cls, embodiment: Embodiment, named: Named | None = None) -> Keys:
        """named: in place of the usual keys. If it names a camera, those that it does not name are not sent. Raises
        EmbodimentError for what is no such robot's."""
        cameras, numbers = [c.name for c in embodiment.cameras], [number.name for number in embodiment.state]
        images: dict[str, tuple[str, ...]] = {}
        state: list[tuple[tuple[str, ...], tuple[int, ...]]] = []
        for key, what in (named or {}).items():
            if not isinstance(key, str) or not key.strip(". /") or key == PROMPT:
                raise EmbodimentError(f"openpi: {key!r} is no key of an observation")
            if isinstance(what, str) and what in cameras:
                if what in images:
                    raise EmbodimentError(f"openpi: camera {what!r} has two keys, {images[what][0]!r} and {key!r}")
                images[what] = (key,)
                continue
            parts = numbers if what == STATE else [what] if isinstance(what, str) else what
            if not isinstance(parts, Sequence):
                raise EmbodimentError(f"openpi: {key}: {parts!r} is neither a camera nor numbers of the state")
            if unknown := [name for name in parts if name not in numbers]:
                there = ", ".join(map(repr, [*cameras, *numbers, STATE]))[:300]
                raise EmbodimentError(f"openpi: {key}: {unknown[0]!r} is none of this robot's {there}")
            state.append(((key,), tuple(numbers.index(name) for name in parts)))
        held = [number for _, part in state for number in part]
        if state and (wrong := next((n for i, n in enumerate(numbers) if held.count(i) != 1), None)):
            raise EmbodimentError(f"openpi: the state's {wrong!r} stands under {held.count(numbers.index(wrong))} keys")
        if not state and numbers:
            state.append((("observation/state", "state"), tuple(range(len(numbers)))))
        if not images:
            images = dict(_usual(cameras, {key for keys, _ in state for key in keys}))
        sent = [(keys[0], f"camera {camera!r}") for camera, keys in images.items()]
        sent += [(keys[0], "the state") for keys, _ in state]
        first: dict[str, int] = {}
        for number, (key, what) in enumerate(sent):
            if (other := first.setdefault(key.replace(".", "/"), number)) != number:
                raise EmbodimentError(
                    f"openpi: {sent[other][1]} and {what} both have the key {key!r}; name them under `openpi:`"
                )
        return cls(embodiment, images, tuple(state))

    def narrowed(self, embodiment: Embodiment) -> Keys:
        """For a policy that fits this robot, and may look at less."""
        cameras = [camera.name for camera in embodiment.cameras]
        images = {camera: keys for camera, keys in self.images.items() if camera in cameras}
        return Keys(embodiment, images, self.state if embodiment.state else ())

    def describe(self) -> dict[str, Any]:
        """What is sent, as `of` takes it."""
        names = [number.name for number in self.embodiment.state]
        held = {keys[0]: [names[number] for number in part] for keys, part in self.state}
        return {keys[0]: camera for camera, keys in self.images.items()} | held

    def read(self, message: Mapping[str, Any]) -> tuple[Observation, str]:
        """What the embodiment's model looks at, and the instruction. Raises InvalidRequest."""
        sent = dict(_flat(message))
        cameras = [(camera, self.images.get(camera.name)) for camera in self.embodiment.cameras]
        images = {camera.name: _image(*_one(sent, keys or (), camera.name), camera) for camera, keys in cameras}
        state = np.zeros(len(self.embodiment.state), np.float32)
        for keys, part in self.state:
            state[list(part)] = _numbers(*_one(sent, keys), len(part), self)
        return Observation(images, state), _prompt(sent)

    def write(self, observation: Observation, instruction: str, side: int | None = SIDE) -> dict[str, Any]:
        """side: [pixels] of the square into which larger images are brought, without distortion, with black around
        them, as openpi's own robots do; None: larger images are brought to the size of the embodiment's cameras."""
        message: dict[str, Any] = {PROMPT: instruction}
        cameras = {camera.name: camera for camera in self.embodiment.cameras}
        for camera, (key, *_) in self.images.items():
            image = observation.images[camera]
            image = shrunk(image, cameras[camera]) if side is None else within(image, side)
            _put(message, key, np.ascontiguousarray(image.transpose(2, 0, 1)) if "." in key else image)
        for (key, *_), part in self.state:
            _put(message, key, observation.state[list(part)])
        return message


def shrunk(image: np.ndarray, camera: Camera) -> np.ndarray:
    """(H, W, 3) uint8 of the camera's size where it is larger, the mean over the area, as policies look at it."""
    height, width = image.shape[:2]
    if height <= camera.height or width <= camera.width:
        return image
    return np.asarray(Image.fromarray(image).resize((camera.width, camera.height), Image.Resampling.BOX))


def within(image: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) uint8, as it is where it fits into the square, else (side, side, 3); as openpi's `resize_with_pad`."""
    height, width = image.shape[:2]
    if max(height, width) <= side:
        return image
    ratio = max(height, width) / side
    small = Image.fromarray(image).resize(
        (max(1, int(width / ratio)), max(1, int(height / ratio))), Image.Resampling.BILINEAR
    )
    square = Image.new("RGB", (side, side))
    square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return np.asarray(square)


def _usual(cameras: Sequence[str], taken: Collection[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each camera's keys, without those that are the state's (`taken`) or another camera's own."""
    wrist = next((name for name in cameras if "wrist" in name.lower()), None)
    first = next((name for name in cameras if "wrist" not in name.lower()), None)
    short = {first: ("observation/image",), wrist: ("observation/wrist_image",)}
    for name in cameras:
        own, others = (f"observation/{name}", f"images/{name}"), {f"observation/{o}" for o in cameras if o != name}
        keys = dict.fromkeys((*short.get(name, ()), *own))
        yield name, tuple(key for key in keys if key not in taken and key not in others) or own


def _flat(message: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in message.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}/")
        else:
            yield f"{before}{key}", value


def _put(message: dict[str, Any], key: str, value: np.ndarray) -> None:
    *maps, last = key.split(".")
    for name in maps:
        message = message.setdefault(name, {})
    message[last] = value


def _one(sent: Mapping[str, Any], keys: Sequence[str], camera: str = "") -> tuple[str, Any]:
    for key in keys:
        if (flat := key.replace(".", "/")) in sent:
            return key, sent[flat]
    what = f"image of camera {camera!r}" if camera else "state"
    wanted = " or ".join(repr(key) for key in keys) or "a key that the robot's `openpi:` does not name"
    there = ", ".join(sorted(sent))[:300] or "nothing"
    raise InvalidRequest(f"no {what}, which is {wanted}; sent: {there}", keys[0] if keys else "")


def _image(key: str, value: Any, camera: Camera) -> np.ndarray:
    """(H, W, 3) uint8 of its own memory."""
    if not isinstance(value, np.ndarray) or value.ndim != 3 or 3 not in (value.shape[0], value.shape[2]):
        raise InvalidRequest(f"{key} is {_what(value)}; an image is (height, width, 3) or (3, height, width)", key)
    image = value if value.shape[2] == 3 else value.transpose(1, 2, 0)
    height, width = image.shape[:2]
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise InvalidRequest(f"{key} is {height} x {width} pixels; each side is 1 to {MAX_SIDE}", key)
    if image.dtype.kind == "f":
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise InvalidRequest(f"{key} is {_what(value)} beyond 0 to 1; send uint8", key)
        image = (255 * image).astype(np.uint8)
    if image.dtype != np.uint8:
        raise InvalidRequest(f"{key} is {_what(value)}; an image is uint8, or a float within 0 to 1", key)
    if not math.isclose(height * camera.width, width * camera.height, rel_tol=PROPORTIONS):
        sizes = f"{height} x {width} pixels, and camera {camera.name!r} sees {camera.height} x {camera.width}"
        raise InvalidRequest(
            f"{key} is {sizes}: other proportions; send it as the camera gives it, without borders", key
        )
    return np.array(image, order="C")


def _numbers(key: str, value: Any, count: int, keys: Keys) -> np.ndarray:
    """(count,) float32."""
    try:
        with np.errstate(over="ignore"):  # it is then not finite
            numbers = np.asarray(value, np.float32).reshape(-1)
    except (ValueError, TypeError):
        raise InvalidRequest(f"{key} is {_what(value)}; it holds {count} numbers", key) from None
    if isinstance(value, str | bytes) or np.ndim(value) > 1 or len(numbers) != count:
        names = ", ".join(number.name for number in keys.embodiment.state)[:200]
        raise InvalidRequest(f"{key} has {numbers.size} numbers, not {count}; the state is {names}", key)
    if not np.isfinite(numbers).all():
        raise InvalidRequest(f"{key} has a number that is not finite", key)
    return numbers


def _prompt(sent: Mapping[str, Any]) -> str:
    if PROMPT not in sent:
        raise InvalidRequest(f"no {PROMPT!r}, which says what to do; sent: {', '.join(sorted(sent))[:300]}", PROMPT)
    prompt = sent[PROMPT]
    if isinstance(prompt, bytes):
        prompt = prompt.decode(errors="replace")
    if not isinstance(prompt, str):
        raise InvalidRequest(f"{PROMPT} is {_what(prompt)}; it is a text", PROMPT)
    return read_text(prompt, "the prompt")


def _what(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"of shape {value.shape} and {value.dtype}"
    return f"of type {type(value).__name__}"
