"""Encoded camera images to arrays of one size."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from saycan_qt.data.lerobot import BadEpisode
from skills.embodiment import MAX_SIDE

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_BYTES = 128 * 2**20  # of an encoded image
SCAN, MOST_SCANS = b"\xff\xda", 100  # passes over a JPEG, each of which takes as long as a picture
MOST_MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else 8 * 2**30


def decode(data: Any, where: str) -> np.ndarray:
    """PNG or JPEG -> (H, W, 3) uint8. Raises BadEpisode, which says `where`, e.g. "at step 3"."""
    if memoryview(data).nbytes > MOST_BYTES or bytes(data).count(SCAN) > MOST_SCANS:
        raise BadEpisode(f"the image {where} has over {MOST_BYTES} bytes, or {MOST_SCANS} scans, to be decoded")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged below, before it is decoded
            image = Image.open(io.BytesIO(data), formats=FORMATS)  # others run other programs, or have many pages
    except (Image.DecompressionBombError, OSError, ValueError, TypeError, SyntaxError) as error:
        raise BadEpisode(f"the image {where} cannot be decoded: {error}") from None
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise BadEpisode(f"the image {where} has {height} x {width} pixels; each side is {MAX_SIDE} at most")
    if image.mode.startswith(("I", "F")):
        raise BadEpisode(f"the image {where} has more than 8 bits a colour, as depth has; it is no camera's picture")
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise BadEpisode(f"the image {where} cannot be decoded: {error}") from None


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
