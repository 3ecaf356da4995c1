"""A PNG or JPEG: what it is, found without decoding it, and then its pixels.

    picture = look(data)              # raises ValueError: what is wrong, in one line without a subject
    if not picture.problem(scans=4):
        pixels = picture.pixels()     # (H, W, 3) uint8 RGB

A small file can keep a processor busy for minutes, or fill its memory: thousands of scans over the same pixels, a text
that inflates. So its parts are counted first, and the decoder is given those that make the picture and no others.
"""

from __future__ import annotations

import io
import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

MAX_PARTS = 10_000  # chunks or segments of a file; a PNG of 64 MiB in the usual 8 KiB has 8,192
LARGE = 1 << 20  # [pixels] from which on few are decoded at one time
SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS = {0: "grey", 2: "RGB", 3: "of a palette", 4: "grey with transparency", 6: "RGB with transparency"}
DRAWN = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}  # chunks that make the picture
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)  # what stands alone or is data left out, as in libjpeg
SOI, EOI, SOS, APP1, COM = 0xD8, 0xD9, 0xDA, 0xE1, 0xFE
FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # SOF0 to SOF15
USUAL, PROGRESSIVE = {0xC0, 0xC1, 0xC2}, 0xC2
ASIDE = {*range(0xE1, 0xEE), 0xEF, COM}  # segments that do not make the picture: all but JFIF's and Adobe's
ORIENTATION = 0x0112  # EXIF's tag

_few = threading.BoundedSemaphore(max(1, (os.cpu_count() or 1) // 2))  # the rest of the processors is for models


@dataclass(frozen=True)
class Picture:
    """What a file says of itself."""

    kind: Literal["PNG", "JPEG", "WEBP"]
    width: int  # [pixels], before it is turned
    height: int
    bits: int  # of a channel
    colours: str  # "RGB", "grey", ...
    bare: bytes = field(repr=False)  # the file without what does not make the picture
    turned: int = 1  # by EXIF, 1 to 8; 1: it is not
    scans: int = 1  # how often its pixels are gone over
    progressive: bool = False

    def problem(self, scans: int) -> str:
        """Why its pixels are not what a policy should see, or dear; "" where nothing is. scans: at most."""
        if self.bits > 8:
            return f"is a {self.bits}-bit {self.kind}; 8 bits a channel are taken"
        if self.turned != 1:
            return f"is stored turned (EXIF orientation {self.turned}), and would be seen so; turn its pixels"
        if self.scans > scans:
            return f"is a JPEG of {self.scans} scans; at most {scans} are taken"
        return ""

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB. Raises what Pillow raises for what it cannot decode."""
        with (
            _few if self.width * self.height > LARGE else nullcontext(),
            Image.open(io.BytesIO(self.bare), formats=[self.kind]) as image,
        ):
            if image.size != (self.width, self.height):
                raise ValueError("it has two sizes")
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def look(data: bytes) -> Picture:
    """Raises ValueError for what is neither, or is cut off."""
    try:
        if data.startswith(SIGNATURE):
            return _png(data)
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
    except (IndexError, struct.error):
        raise ValueError("is cut off") from None
    raise ValueError("is neither a PNG nor a JPEG")


def _png(data: bytes) -> Picture:
    drawn, header, turned = [SIGNATURE], b"", 1
    for kind, start, end in _chunks(data):
        if not header:
            header = data[start + 8 : end]
            if kind != b"IHDR":
                raise ValueError("has no header")
        if kind in DRAWN:
            drawn.append(data[start:end])
        elif kind == b"eXIf":
            turned = _orientation(data[start + 8 : end - 4])
    width, height, bits, colours = struct.unpack_from(">IIBB", header)
    return Picture("PNG", width, height, bits, COLOURS.get(colours, "of no known colours"), b"".join(drawn), turned)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each, to the last one."""
    start, kind = len(SIGNATURE), b""
    for _ in range(MAX_PARTS):
        if kind == b"IEND":
            return
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            raise ValueError("is cut off")
        yield kind, start, end
        start = end
    raise ValueError(f"has more than {MAX_PARTS:,} chunks")


def _jpeg(data: bytes) -> Picture:
    drawn, kept, scans, turned = [], 0, 0, 1  # kept: from where on
    frame: tuple[int, bytes] | None = None  # its marker and content
    for marker, start, end in _segments(data):
        if marker in FRAMES:
            if frame is not None:
                raise ValueError("has several frames")
            frame = marker, data[start + 4 : end]
        elif marker == SOS:
            scans += 1
        elif marker in ASIDE:
            if marker == APP1 and data.startswith(b"Exif\0\0", start + 4) and turned == 1:
                turned = _orientation(data[start + 10 : end])
            drawn.append(data[kept:start])
            kept = end
        if marker == EOI:
            drawn.append(data[kept:end])
            break
    else:
        drawn.append(data[kept:])
    if frame is None:
        raise ValueError("has no frame")
    marker, content = frame
    if marker not in USUAL:
        raise ValueError(f"is a JPEG of a rare kind (SOF{marker - 0xC0})")
    bits, height, width, channels = struct.unpack_from(">BHHB", content)
    colours = {1: "grey", 3: "RGB", 4: "CMYK"}.get(channels, f"of {channels} channels")
    return Picture("JPEG", width, height, bits, colours, b"".join(drawn), turned, scans, marker == PROGRESSIVE)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each, without the pixels that follow a scan's; the end's is as long as itself."""
    end = 2
    for _ in range(MAX_PARTS):
        if (found := MARKER.search(data, end)) is None:
            return
        marker, start = data[found.start() + 1], found.start()
        if marker == SOI:
            raise ValueError("begins twice")
        if marker == EOI:
            yield marker, start, start + 2
            return
        (length,) = struct.unpack_from(">H", data, start + 2)
        end = start + 2 + length
        if length < 2 or end > len(data):
            raise ValueError("is cut off")
        yield marker, start, end
    raise ValueError(f"has more than {MAX_PARTS:,} segments")


def _orientation(tiff: bytes) -> int:
    """How EXIF says that a picture is turned; 1 where it says nothing that can be read."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
