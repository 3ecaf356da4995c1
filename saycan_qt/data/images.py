"""Encoded camera images to arrays of one size."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from saycan_qt.data.lerobot import BadEpisode
from skills.embodiment import MAX_SIDE


def decode(data: Any, where: str) -> np.ndarray:
    """PNG or JPEG -> (H, W, 3) uint8. Raises BadEpisode, which says `where`, e.g. "at step 3"."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged below, before it is decoded
            image = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, OSError, ValueError, TypeError, SyntaxError) as error:
        raise BadEpisode(f"the image {where} cannot be decoded: {error}") from None
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise BadEpisode(f"the image {where} has {height} x {width} pixels; each side is {MAX_SIDE} at most")
    try:
        return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise BadEpisode(f"the image {where} cannot be decoded: {error}") from None


def stack(
    images: Iterable[np.ndarray], length: int, stored: tuple[int, int] | None, size: tuple[int, int]
) -> np.ndarray:
    """`length` images as (T, H, W, 3) uint8 of `size` (H, W); stored: the size that they must have, None for any."""
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
