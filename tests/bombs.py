"""Small files that are long in the making."""

import io
import struct

from PIL import Image


def many_scans(side, count):
    """A sequential JPEG, side x side, of that many scans, each of one channel and no more than a header: 33 kB hold
    3,000."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    data = file.getvalue()
    size = data.index(b"\xff\xc0") + 5
    head = data[:size] + struct.pack(">HH", side, side) + data[size + 4 : data.index(b"\xff\xda")]
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 0, 63, 0) + b"\0"
    return head + scan * count + b"\xff\xd9"
