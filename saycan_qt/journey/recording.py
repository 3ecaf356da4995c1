"""A video of a run: the robot's cameras for people side by side, with the current skill written underneath."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, ImageOps

from skills.embodiment import MAX_SIDE
from skills.wire import pictures

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

log = logging.getLogger(__name__)

MAX_SCANS = 100  # of a view's JPEG
SPEED = 2  # a run is shown at so many times its speed
FRAME_RATES = (1, 20)  # [1/s] the slowest and the fastest; what more a fast robot shows is left out
CONTROL_HZ = 3.0  # where a robot does not say its own
VIEW_HEIGHT, VIEW_WIDTH, CAPTION_HEIGHT = 256, 320, 52  # [pixels]; even, as yuv420p asks
COLUMNS = 4  # of views, at most; more stand in further rows
BACKGROUND, TEXT, FAINT = (17, 20, 24), (240, 240, 240), (150, 158, 166)


class Recorder:
    """Writes an H.264 file (MPEG-4 where libx264 is missing) frame by frame; `close` makes it playable.

    There is no file until the first frame, and none at all of a robot without views, or where it cannot be written: a
    run goes on without. A view that is no picture is left out."""

    def __init__(self, path: Path) -> None:
        self.path, self.frames = path, 0
        self.views: tuple[str, ...] = ()
        self._lock = threading.Lock()  # a run may be ended from another thread than the one that records
        self._closed = False
        self._container: OutputContainer | None = None
        self._stream: VideoStream
        self._last: dict[str, Image.Image] = {}
        self._shown = 0.0  # frames, before they are rounded
        self.begin((), CONTROL_HZ)

    def begin(self, views: Sequence[str], control_hz: float) -> None:
        """Before the first frame: which views, left to right, and how often a second the robot acts; 0: not known."""
        self.views = tuple(views)
        self._step = 1 / (SPEED * (control_hz or CONTROL_HZ))  # [s] that a control step is shown
        slowest, fastest = FRAME_RATES
        self._rate = Fraction(min(max(1 / self._step, slowest), fastest)).limit_denominator(100)  # [1/s]
        self._columns = min(len(self.views), COLUMNS)
        self._picture_height = VIEW_HEIGHT * -(-len(self.views) // COLUMNS)

    def add(self, jpegs: Mapping[str, bytes], caption: str, note: str = "", seconds: float | None = None) -> None:
        """Show these pictures for `seconds`, or as long as one control step lasts; a view that is not given keeps its
        last picture. Nothing after `close`."""
        with self._lock:
            if self._closed or not self.views:
                return
            for name in self.views:
                if name in jpegs and (picture := _picture(name, jpegs[name])) is not None:
                    self._last[name] = ImageOps.pad(picture, (VIEW_WIDTH, VIEW_HEIGHT), color=BACKGROUND)
            self._shown += float((self._step if seconds is None else seconds) * self._rate)
            count = round(self._shown) - self.frames
            if count <= 0 and self.frames:
                return
            with self._without_on_failure():
                self._write(self._draw(caption, note), max(1, count))

    @contextlib.contextmanager
    def _without_on_failure(self) -> Iterator[None]:
        """A disk that is full costs the video."""
        import av

        try:
            yield
        except (OSError, av.FFmpegError) as error:
            log.warning("there is no video: %s cannot be written: %s", self.path, error.strerror or error)
            self._closed, self.frames = True, 0
            with contextlib.suppress(OSError, av.FFmpegError):
                if self._container is not None:
                    self._container.close()
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _write(self, canvas: Image.Image, count: int) -> None:
        import av

        if self._container is None:
            self._open(canvas.width, canvas.height)
        assert self._container is not None, "it was just opened"
        for _ in range(count):
            frame = av.VideoFrame.from_image(canvas)
            frame.pts = self.frames
            frame.time_base = 1 / self._rate
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def _open(self, width: int, height: int) -> None:
        import av
        from av.video.stream import VideoStream

        self._container = av.open(str(self.path), "w", options={"movflags": "+faststart"})
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = self._container.add_stream(codec, rate=self._rate)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.time_base = 1 / self._rate
        if codec == "libx264":
            stream.options = {"crf": "24", "preset": "veryfast"}
        stream.thread_count = 1
        self._stream = stream

    def _draw(self, caption: str, note: str) -> Image.Image:
        size = (VIEW_WIDTH * self._columns, self._picture_height + CAPTION_HEIGHT)
        canvas = Image.new("RGB", size, BACKGROUND)
        for number, name in enumerate(self.views):
            if name in self._last:
                row, column = divmod(number, COLUMNS)
                canvas.paste(self._last[name], (column * VIEW_WIDTH, row * VIEW_HEIGHT))
        draw = ImageDraw.Draw(canvas)
        draw.text((12, self._picture_height + 5), caption, fill=TEXT, font=ImageFont.load_default(18))
        draw.text((12, self._picture_height + 30), note, fill=FAINT, font=ImageFont.load_default(13))
        return canvas

    @property
    def seconds(self) -> float:
        """[s] of video so far."""
        return float(self.frames / self._rate)

    def close(self) -> None:
        """Write what is left; a recording without frames leaves no file."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._container is not None:
                with self._without_on_failure():
                    self._container.mux(self._stream.encode(None))
                    self._container.close()


def _picture(name: str, jpeg: bytes) -> Image.Image | None:
    """Of a view; None for what is none, or would be long in the making."""
    try:
        found = pictures.look(jpeg)
        if found.scans <= MAX_SCANS and max(found.width, found.height) <= MAX_SIDE:
            return Image.fromarray(found.pixels())
    except (OSError, ValueError, TypeError, SyntaxError):
        pass
    log.info("a picture of view %r cannot be shown", name)
    return None
