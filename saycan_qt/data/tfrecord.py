"""TFRecord files without TensorFlow: the records of a file, each held to its check-sums.

A record is its length (u64, little endian), the masked CRC-32C of the length, the data, and the masked CRC-32C of the
data [tensorflow.org/tutorials/load_data/tfrecord]. The data is a serialized tf.train.Example.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from saycan_qt.data.lerobot import left_out
from skills import files

MOST_BYTES = 2**29  # of a record, which is one episode
MASK = 0xA282EAD8
HEADER = struct.Struct("<QI")
Proto = descriptor_pb2.FieldDescriptorProto


@dataclass(frozen=True)
class Damaged:
    """A record that cannot be used."""

    record: int  # its number in the file
    reason: str
    ends: bool  # whether the records after it cannot be found


def read_records(path: Path) -> Iterator[bytes | Damaged]:
    """The records of a file in order. One with damaged data costs itself, a damaged length all that follows."""
    number = 0
    try:
        size = files.check(path)
    except OSError as error:
        yield Damaged(0, f"it cannot be read: {error.strerror}", ends=True)
        return
    with files.opened(path) as file:
        while header := file.read(HEADER.size):
            if len(header) < HEADER.size or masked_crc(header[:8]) != HEADER.unpack(header)[1]:
                what = "truncated" if len(header) < HEADER.size else "corrupt"
                yield Damaged(number, left_out(path) or f"the length of record {number} is {what}", ends=True)
                return
            length, _ = HEADER.unpack(header)
            if file.tell() + length + 4 > size:
                yield Damaged(number, f"record {number} is truncated", ends=True)
                return
            if length > MOST_BYTES:
                file.seek(length + 4, os.SEEK_CUR)
                yield Damaged(number, f"record {number} has {length} bytes, at most {MOST_BYTES} are read", ends=False)
                number += 1
                continue
            data, (crc,) = file.read(length), struct.unpack("<I", file.read(4))
            yield data if masked_crc(data) == crc else Damaged(number, f"record {number} is corrupt", ends=False)
            number += 1


def masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF


def parse_example(data: bytes) -> Any:
    """A tf.train.Example's features: name -> tf.train.Feature. Raises google.protobuf.message.DecodeError."""
    return EXAMPLE.FromString(data).features.feature


def _example_class() -> Any:
    """tf.train.Example [tensorflow/core/example/{example,feature}.proto], which only TensorFlow ships."""
    file = descriptor_pb2.FileDescriptorProto(name="saycan_qt/example.proto", package="tensorflow", syntax="proto3")

    def field(message: Any, name: str, number: int, kind: Any, repeated: bool = False, **more: Any) -> None:
        label = Proto.LABEL_REPEATED if repeated else Proto.LABEL_OPTIONAL
        message.field.add(name=name, number=number, type=kind, label=label, **more)

    kinds = {"Bytes": Proto.TYPE_BYTES, "Float": Proto.TYPE_FLOAT, "Int64": Proto.TYPE_INT64}
    for name, kind in kinds.items():
        field(file.message_type.add(name=f"{name}List"), "value", 1, kind, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(kinds, 1):
        type_name = f".tensorflow.{name}List"
        field(feature, f"{name.lower()}_list", number, Proto.TYPE_MESSAGE, type_name=type_name, oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    field(entry, "key", 1, Proto.TYPE_STRING)
    field(entry, "value", 2, Proto.TYPE_MESSAGE, type_name=".tensorflow.Feature")
    field(features, "feature", 1, Proto.TYPE_MESSAGE, repeated=True, type_name=".tensorflow.Features.FeatureEntry")
    example = file.message_type.add(name="Example")
    field(example, "features", 1, Proto.TYPE_MESSAGE, type_name=".tensorflow.Features")
    pool = descriptor_pool.DescriptorPool()  # our own, so that TensorFlow may be imported beside it
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


EXAMPLE = _example_class()
