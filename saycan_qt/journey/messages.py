"""What an MCAP file of a run says, as protobuf: Foxglove's own messages for pictures and lines, and those of a plan.

Each is a table of its fields, numbered from 1 in their order; "Candidate*" is a list. A viewer reads the same from the
schemas that the file carries. What is not known of a candidate, such as the likelihood of one that was not scored, is
NaN, and a plot has a gap there.
"""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import DESCRIPTOR as TIMESTAMP

# names, numbers and types as in foxglove-sdk's schemas/proto: by these a viewer knows what is a picture and what a log
FOXGLOVE = {
    "CompressedImage": {"timestamp": "Timestamp", "data": "bytes", "format": "string", "frame_id": "string"},
    "Log": {
        "timestamp": "Timestamp",
        "level": "Level",
        "message": "string",
        "name": "string",
        "file": "string",
        "line": "fixed32",
    },
}
LEVELS = ("UNKNOWN", "DEBUG", "INFO", "WARNING", "ERROR", "FATAL")  # of foxglove.Log
SCORES = {"language": "double", "affordance": "double", "product": "double", "lowered": "double", "raw": "double"}
RANKS = ("chosen", "second", "third", "fourth", "fifth")  # best first; the person may have chosen another than the best
PLAN = {
    "Instruction": {"text": "string", "run": "string"},
    "Candidate": {"skill": "string", "text": "string", **SCORES, "model": "string"},
    "Decision": {"step": "int32", "skill": "string", "text": "string", **SCORES, "candidates": "Candidate*"},
    "Ranked": dict.fromkeys(RANKS, "double"),  # of one kind of score, over time
    "Skill": {
        "step": "int32",
        "skill": "string",
        "text": "string",
        "outcome": "string",  # running, then succeeded, failed, canceled or aborted
        "message": "string",
        "control_step": "int32",
        "of": "int32",  # control steps at most; 0: not known
        "seconds": "double",
        "corrected": "string",  # how it really ended, as a person said; "": nobody said otherwise
    },
    "Number": {"name": "string", "value": "double"},  # the name is its place, from 0, where the robot tells none
    "State": {"numbers": "Number*"},
    "Object": {"name": "string", "place": "string"},
    "Belief": {"place": "string", "held": "string", "objects": "Object*"},
    "Phase": {"phase": "string", "text": "string", "step": "int32"},
}


def file_of(package: str, tables: dict[str, dict[str, str]]) -> FileDescriptorProto:
    file = FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto3", dependency=[TIMESTAMP.name], options={}
    )
    for name, fields in tables.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            label = "LABEL_REPEATED" if kind.endswith("*") else "LABEL_OPTIONAL"
            added = message.field.add(name=field, number=number, label=FieldDescriptorProto.Label.Value(label))
            kind = kind.removesuffix("*")
            if kind == "Level":
                added.type, added.type_name = FieldDescriptorProto.TYPE_ENUM, f".{package}.{name}.Level"
                level = message.enum_type.add(name="Level")
                for value, one in enumerate(LEVELS):
                    level.value.add(name=one, number=value)
            elif kind[0].isupper():
                added.type = FieldDescriptorProto.TYPE_MESSAGE
                added.type_name = f".{TIMESTAMP.package if kind == 'Timestamp' else package}.{kind}"
            else:
                added.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    return file


def _timestamp() -> FileDescriptorProto:
    file = FileDescriptorProto()
    TIMESTAMP.CopyToProto(file)
    return file


FILES = {package: file_of(package, tables) for package, tables in (("foxglove", FOXGLOVE), ("saycan_qt", PLAN))}
POOL = DescriptorPool()
for _file in (_timestamp(), *FILES.values()):
    POOL.Add(_file)


def message_class(name: str) -> type[Message]:
    """Of "saycan_qt.Decision"."""
    return GetMessageClass(POOL.FindMessageTypeByName(name))


def schema(name: str) -> bytes:
    """Of "saycan_qt.Decision", as MCAP keeps the schemas of protobuf: with all that it leans on."""
    return FileDescriptorSet(file=[_timestamp(), FILES[name.partition(".")[0]]]).SerializeToString()
