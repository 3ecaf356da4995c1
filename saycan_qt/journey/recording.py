"""A video of a run: the robot's view and the room side by side, with the current skill written underneath."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont, ImageOps

VIEWS = ("head", "room")  # left, right
FRAME_RATE = 6  # [1/s]; control runs at 3 Hz, so a run is shown at twice its speed
VIEW_HEIGHT, VIEW_WIDTH, CAPTION_HEIGHT = 256, 320, 52  # [pixels]; even, as yuv420p asks
BACKGROUND, TEXT, FAINT = (17, 20, 24), (240, 240, 240), (150, 158, 166)


class Recorder:
    """Writes an H.264 file (MPEG-4 where libx264 is missing) frame by frame; `close` makes it playable."""

    def __init__(self, path: Path, views: tuple[str, ...] = VIEWS) -> None:
        self.path = path
        self.views = views
        self.frames = 0
        self._lock = threading.Lock()  # a run may be ended from another thread than the one that records
        self._closed = False
        self._container = av.open(str(path), "w", options={"movflags": "+faststart"})
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = self._container.add_stream(codec, rate=FRAME_RATE)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = VIEW_WIDTH * len(views), VIEW_HEIGHT + CAPTION_HEIGHT
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FRAME_RATE)
        if codec == "libx264":
            stream.options = {"crf": "24", "preset": "veryfast"}
        stream.thread_count = 1
        self._stream = stream
        self._last: dict[str, Image.Image] = {}

    def add(self, jpegs: Mapping[str, bytes], caption: str, note: str = "", seconds: float = 1 / FRAME_RATE) -> None:
        """Show these pictures for `seconds`; a view that is not given keeps its last picture. Nothing after `close`."""
        with self._lock:
            if self._closed:
                return
            for name in self.views:
                if name in jpegs:
                    picture = Image.open(io.BytesIO(jpegs[name])).convert("RGB")
                    self._last[name] = ImageOps.pad(picture, (VIEW_WIDTH, VIEW_HEIGHT), color=BACKGROUND)
            canvas = self._draw(caption, note)
            for _ in range(max(1, round(seconds * FRAME_RATE))):
                frame = av.VideoFrame.from_image(canvas)
                frame.pts = self.frames
                frame.time_base = Fraction(1, FRAME_RATE)
                self._container.mux(self._stream.encode(frame))
                self.frames += 1

    def _draw(self, caption: str, note: str) -> Image.Image:
        canvas = Image.new("RGB", (VIEW_WIDTH * len(self.views), VIEW_HEIGHT + CAPTION_HEIGHT), BACKGROUND)
        for column, name in enumerate(self.views):
            if name in self._last:
                canvas.paste(self._last[name], (column * VIEW_WIDTH, 0))
        draw = ImageDraw.Draw(canvas)
        draw.text((12, VIEW_HEIGHT + 5), caption, fill=TEXT, font=ImageFont.load_default(18))
        draw.text((12, VIEW_HEIGHT + 30), note, fill=FAINT, font=ImageFont.load_default(13))
        return canvas

    def close(self) -> None:
        """Write what is left; a recording without frames leaves no file."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self.frames:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if not self.frames:
                self.path.unlink(missing_ok=True)
