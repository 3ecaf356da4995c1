"""Frames of a video file by their time, as LeRobotDataset v3 stores many episodes in one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from saycan_qt.data.lerobot import BadEpisode

GROUP = 2  # frames from one key frame to the next, as in LeRobot: quick to seek in
QUALITY = 18  # constant rate factor of H.264; lower is better, its default is 23
TOLERANCE = 1e-4  # [s] between the time asked for and a frame's own, as in LeRobot's reader


def read_frames(path: Path, times: np.ndarray) -> Iterator[np.ndarray]:
    """The frame at each of `times` (T,) [s, rising], (H, W, 3) uint8; nothing outside their span is decoded.

    BadEpisode when the file cannot be decoded or has no frame at one of the times."""
    wanted = iter(enumerate(times))
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            # Backwards to a key frame, from where all frames up to the one wanted can be decoded.
            container.seek(max(0, int((times[0] - TOLERANCE) / stream.time_base)), stream=stream)
            step, time = next(wanted)
            for frame in container.decode(stream):
                if frame.time is None or frame.time < time - TOLERANCE:
                    continue
                if frame.time > time + TOLERANCE:
                    raise BadEpisode(
                        f"{path} has no frame at {time:.4f} s (step {step}), but one at {frame.time:.4f} s"
                    )
                yield frame.to_ndarray(format="rgb24")
                step, time = next(wanted, (-1, np.inf))
                if step < 0:
                    return
    except (av.FFmpegError, OSError, IndexError) as error:
        raise BadEpisode(f"{path} cannot be decoded: {error}") from None
    raise BadEpisode(f"{path} ends before {time:.4f} s (step {step})")


def write_video(path: Path, clips: Sequence[np.ndarray], fps: float) -> None:
    """Clips (T, H, W, 3) uint8, one after the other, as H.264 in an MP4 file."""
    options = {"crf": str(QUALITY), "g": str(GROUP), "threads": "1"}
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.pix_fmt, (stream.height, stream.width) = "yuv420p", clips[0].shape[1:3]
        for image in (image for clip in clips for image in clip):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
