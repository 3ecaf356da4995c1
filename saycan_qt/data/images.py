"""Encoded camera images to arrays of one size."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from saycan_qt.data.lerobot import BadEpisode
from skills.embodiment import MAX_SIDE
from skills.wire import pictures

MOST_BYTES = 128 * 2**20  # of an encoded image
MOST_SCANS = 100  # passes over a JPEG, each of which takes as long as a picture; a progressive one has about ten
MOST_MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else 8 * 2**30


def decode(data: Any, where: str) -> np.ndarray:
    """PNG or JPEG, or WebP -> (H, W, 3) uint8. Raises BadEpisode, which says `where`, e.g. "at step 3"."""
    try:
        if memoryview(data).nbytes > MOST_BYTES:
            raise BadEpisode(f"the image {where} has over {MOST_BYTES} bytes")
        encoded = bytes(data)
        picture = _webp(encoded) if encoded[8:12] == b"WEBP" else pictures.look(encoded)
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise BadEpisode(f"the image {where} cannot be decoded: it {error}") from None
    if max(picture.width, picture.height) > MAX_SIDE:
        size = f"{picture.height} x {picture.width}"
        raise BadEpisode(f"the image {where} has {size} pixels; each side is {MAX_SIDE} at most")
    if problem := picture.problem(MOST_SCANS):
        raise BadEpisode(f"the image {where} {problem}")
    try:
        return picture.pixels()
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise BadEpisode(f"the image {where} cannot be decoded: {error}") from None


def _webp(data: bytes) -> pictures.Picture:
    """Whose sides are 16,383 at most, and which has 8 bits."""
    with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
        turned = image.getexif().get(pictures.ORIENTATION, 1)
        return pictures.Picture("WEBP", *image.size, 8, "RGB", data, turned if turned in range(1, 9) else 1)


def stack(
    images: Iterable[np.ndarray], length: int, stored: tuple[int, int] | None, size: tuple[int, int]
) -> np.ndarray:
    """`length` images as (T, H, W, 3) uint8 of `size` (H, W); stored: the size that they must have, None for any."""
    if (size_of := length * math.prod(size) * 3) > MOST_MEMORY:
        raise BadEpisode(
            f"its {length} frames of {size[0]} x {size[1]} pixels take {size_of / 1e9:.1f} GB, more than half of the "
            "memory here; smaller ones are made with `image_size: [80, 96]` in a mapping"
        )
    frames = np.empty((length, *size, 3), np.uint8)
    step = -1
    for step, image in enumerate(images):
        if stored is not None and image.shape != (*stored, 3):
            raise BadEpisode(f"the image at step {step} has shape {image.shape}, not {(*stored, 3)}")
        frames[step] = fit(image, *size)
    if step + 1 != length:
        raise BadEpisode(f"{step + 1} images for {length} frames")
    return frames


def fit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 stretched to the size; the mean over the area where it shrinks, bilinear where it grows."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((width, height), method))
