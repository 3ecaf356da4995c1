"""Frames of a video file by their time, as LeRobotDataset v3 stores many episodes in one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from saycan_qt.data.lerobot import BadEpisode, left_out
from skills import files
from skills.embodiment import MAX_SIDE

# Video alone, of this file alone: others are lists of files and addresses, which FFmpeg would open
ALONE = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi", "protocol_whitelist": "file"}
LONGEST = 1e7  # [s]
AHEAD, PER_FRAME = 20_000, 20  # frames that are decoded in search of the first one, and for each
GROUP = 2  # frames from one key frame to the next, as in LeRobot: quick to seek in
QUALITY = 18  # constant rate factor of H.264; lower is better, its default is 23
NEAR = 0.49  # of a frame's time, between the time asked for and a frame's own: recorders' errors add up


def read_frames(path: Path, times: np.ndarray, fps: float) -> Iterator[np.ndarray]:
    """The frame nearest to each of `times` (T,) [s, rising], (H, W, 3) uint8; nothing outside their span is decoded.

    BadEpisode when the file cannot be decoded or has no frame at one of the times."""
    if not np.isfinite(times).all() or times.min() < -NEAR / fps or times.max() > LONGEST:
        raise BadEpisode(f"{path}: times of {times.min():.4g} to {times.max():.4g} s are no times in a video")
    wanted, near = iter(enumerate(times)), NEAR / fps
    step, time = next(wanted)
    before: av.VideoFrame | None = None  # the frame before this one
    seen = 0
    try:
        files.check(path)
        with av.open(path, options=ALONE) as container:
            stream = container.streams.video[0]
            if max(stream.height, stream.width) > MAX_SIDE:
                raise BadEpisode(f"{path} has {stream.height} x {stream.width} pixels; each side is {MAX_SIDE} at most")
            # Backwards to a key frame, from where all frames up to the one wanted can be decoded.
            container.seek(max(0, int((times[0] - near) / stream.time_base)), stream=stream)
            for frame in container.decode(stream):
                seen += 1
                if seen > AHEAD + PER_FRAME * len(times):
                    raise BadEpisode(f"{path}: no frame at {time:.4f} s (step {step}) among the {seen} nearest to it")
                if max(frame.height, frame.width) > MAX_SIDE:
                    raise BadEpisode(f"{path} has a frame of {frame.height} x {frame.width} pixels (step {step})")
                if frame.time is None:
                    continue
                if frame.rotation:
                    raise BadEpisode(
                        f"{path} is to be shown turned by {frame.rotation} degrees; turn its pixels themselves"
                    )
                while frame.time >= time:  # between the two, or at this one
                    nearest = min((f for f in (before, frame) if f is not None), key=lambda f: abs(f.time - time))
                    if abs(nearest.time - time) > near:
                        found = f"one at {nearest.time:.4f} s"
                        raise BadEpisode(f"{path} has no frame at {time:.4f} s (step {step}), but {found}")
                    yield nearest.to_ndarray(format="rgb24")
                    step, time = next(wanted, (-1, np.inf))
                    if step < 0:
                        return
                before = frame
            while before is not None and step >= 0 and time - before.time <= near:  # a little after the last one
                yield before.to_ndarray(format="rgb24")
                step, time = next(wanted, (-1, np.inf))
            if step < 0:
                return
    except (av.FFmpegError, OSError, IndexError, ValueError, ArithmeticError, TypeError) as error:
        raise BadEpisode(f"{path} {left_out(path) or f'cannot be decoded: {error}'}") from None
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
