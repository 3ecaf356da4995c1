"""The wire as it was released never changes: names, numbers and types stay; new ones may come."""

from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from skills.v1 import skills_pb2

RELEASED = Path(__file__).parent.parent / "protos" / "released.binpb"  # protos/buf.yaml says how it is written


def current() -> FileDescriptorProto:
    file = FileDescriptorProto()
    skills_pb2.DESCRIPTOR.CopyToProto(file)
    return file


def facts(file: FileDescriptorProto) -> set[tuple]:
    """Everything that a client made from this file relies on."""
    found = {("package", file.package)}
    for service in file.service:
        for m in service.method:
            streams = (m.client_streaming, m.server_streaming)
            found.add(("method", service.name, m.name, m.input_type, m.output_type, *streams))
    for enum in file.enum_type:
        found |= {("value", enum.name, value.name, value.number) for value in enum.value}
    messages = [(message.name, message) for message in file.message_type]
    for name, message in messages:
        found.add(("message", name))
        messages += [(f"{name}.{nested.name}", nested) for nested in message.nested_type]  # how maps are kept
        for f in message.field:
            oneof = message.oneof_decl[f.oneof_index].name if f.HasField("oneof_index") else ""
            found.add(("field", name, f.name, f.number, f.type, f.type_name, f.label, oneof))
    return found


def test_everything_released_is_still_there_and_means_the_same():
    [released] = FileDescriptorSet.FromString(RELEASED.read_bytes()).file
    gone = facts(released) - facts(current())
    assert not gone, "clients that are out there would misread this; add a new field beside it instead"
    assert len(facts(released)) > 100


def rename(file):
    file.message_type[0].field[0].name += "s"


def renumber(file):
    file.message_type[0].field[0].number = 99


def retype(file):
    file.message_type[0].field[1].type = FieldDescriptorProto.TYPE_INT64


def remove(file):
    del file.message_type[0].field[0]


def stream(file):
    file.service[0].method[0].server_streaming = True


def leave_the_oneof(file):
    [message] = [message for message in file.message_type if message.name == "ExecuteSkillResponse"]
    message.field[0].ClearField("oneof_index")


@pytest.mark.parametrize("change", [rename, renumber, retype, remove, stream, leave_the_oneof])
def test_a_change_that_breaks_clients_is_seen(change):
    changed = current()
    change(changed)
    assert facts(current()) - facts(changed)


def test_a_new_field_breaks_nobody():
    grown = current()
    grown.message_type[0].field.add(name="depth", number=5, type=FieldDescriptorProto.TYPE_BYTES)
    assert not facts(current()) - facts(grown)
