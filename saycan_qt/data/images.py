"""Encoded camera images to arrays of one size."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from saycan_qt.data.lerobot import BadEpisode


def decode(data: Any, where: str) -> np.ndarray:
    """PNG or JPEG -> (H, W, 3) uint8. Raises BadEpisode, which says `where`, e.g. "at step 3"."""
    try:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, ValueError, TypeError, SyntaxError) as error:
        raise BadEpisode(f"the image {where} cannot be decoded: {error}") from None


def stack(images: Iterable[np.ndarray], length: int, shape: tuple[int, ...], resize: bool) -> np.ndarray:
    """`length` images as (T, H, W, 3) uint8 of `shape` (H, W, 3), which they have already or are resized to."""
    frames = np.empty((length, *shape), np.uint8)
    step = -1
    for step, image in enumerate(images):
        if image.shape != shape and not resize:
            raise BadEpisode(f"the image at step {step} has shape {image.shape}, not {shape}")
        frames[step] = fit(image, shape[0], shape[1])
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
