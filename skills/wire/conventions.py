"""What both ends of a connection agree on: options, addresses, and which error is which gRPC status."""

from __future__ import annotations

import ipaddress
import re
from typing import TypeVar
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from skills.errors import (
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    LeaseLost,
    PermissionDenied,
    ServerFault,
    SkillError,
    Stopped,
    Unauthenticated,
    Unavailable,
    UnknownSkill,
    Unreadable,
    Unsupported,
)

T = TypeVar("T", bound=Message)
SCHEMA_VERSION = 1
TERMS = "skill-terms"  # metadata of a control stream: a digest of its model's embodiment and chunk
MAX_DETAILS = 1000  # [bytes] of a status message: it travels in a header, at worst 5 times as long
MAX_MESSAGE = 64 * 2**20  # [bytes]: a long history of raw 320x256 images fits
PING_EVERY = 1000  # [ms] without traffic before a server pings its client
PING_TIMEOUT = 1000  # [ms] without an answer before the link counts as dead
PING_INTERVAL = PING_EVERY // 2  # [ms] between two pings of a client, at least; ours send none (skills/wire/link.py)
CONNECT_TIMEOUT = 5000  # [ms] until a service must have answered a new connection; gRPC's own 20 s are long for a robot

MAX_STREAMS = 64  # calls at one time on one connection
HANDSHAKE_TIMEOUT = 3000  # [ms] in which a new connection must speak TLS and HTTP/2

CLIENT_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT),  # gRPC's name for it
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # a service that was started again is found again within a second
    ("grpc.use_local_subchannel_pool", 1),  # a client's own connection: closing one client never disturbs another
]
SERVER_OPTIONS = [
    ("grpc.so_reuseport", 0),  # else a second server takes the same port in silence
    ("grpc.keepalive_time_ms", PING_EVERY),  # a client that vanished must not leave a robot moving
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT),  # without it a dead link is noticed after 60 s
    ("grpc.http2.max_pings_without_data", 0),  # any number
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT),
    ("grpc.http2.bdp_probe", 0),  # with it a server takes 4 MiB of each message that it has not begun to read
    ("grpc.max_send_message_length", MAX_MESSAGE),
]


def server_options(max_message: int, compression: bool, connections: int) -> list[tuple[str, int]]:
    """A server's own: the largest request [bytes], whether it takes compressed ones, how many connections."""
    return [
        *SERVER_OPTIONS,
        ("grpc.max_receive_message_length", max_message),
        ("grpc.compression_enabled_algorithms_bitset", 0b111 if compression else 0b001),  # identity, deflate, gzip
        ("grpc.max_allowed_incoming_connections", connections),
    ]


CODES = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownSkill: grpc.StatusCode.NOT_FOUND,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Stopped: grpc.StatusCode.FAILED_PRECONDITION,
    Unreadable: grpc.StatusCode.FAILED_PRECONDITION,
    LeaseLost: grpc.StatusCode.FAILED_PRECONDITION,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    ServerFault: grpc.StatusCode.INTERNAL,
}
# Of C0 and C1, what ends a line, and what reverses the order in which letters are shown
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
ERRORS = {code: error for error, code in CODES.items() if error not in (Unreadable, LeaseLost)}  # told apart otherwise
LEASE_LOST = "LEASE_LOST"  # ErrorInfo's reason


def plain(text: str) -> str:
    """The same without control characters, which would write lines of their own into a log, or command a terminal."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def split_address(address: str) -> tuple[str, int]:
    """ "host:port" -> (host, port); an IPv6 host stands in brackets."""
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # as sockets do: no part of a name may be empty, or longer than 63
    except ValueError:
        host, port = None, None
    if not host or port is None or parts.netloc != address:
        raise InvalidRequest(f"{address!r} is not an address; it must be HOST:PORT, such as 127.0.0.1:50051")
    return host, port


def join_address(host: str, port: int) -> str:
    """(host, port) -> "host:port"; an IPv6 host gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Can only this machine reach it? 127.0.0.0/8, ::1 and localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def code_of(error: SkillError) -> grpc.StatusCode:
    """The status a server answers with."""
    return next((code for kind, code in CODES.items() if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def status_of(error: SkillError) -> Status:
    """What a server answers with: code, text, and for some what a program can read (google.rpc.error_details)."""
    code, text = code_of(error), plain(str(error)).encode()[:MAX_DETAILS].decode(errors="ignore")
    status = Status(code=code.value[0], message=text)
    match error:
        case InvalidRequest():
            violation = BadRequest.FieldViolation(field=error.field, description=text)
            status.details.add().Pack(BadRequest(field_violations=[violation]))
        case Busy() if error.retry_after is not None:
            advice = RetryInfo()
            advice.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
            status.details.add().Pack(advice)
        case LeaseLost():
            status.details.add().Pack(ErrorInfo(reason=LEASE_LOST, domain="skills.v1"))
    return status


def error_of(error: grpc.RpcError, service: str, address: str) -> SkillError:
    """What a client raises; `service` is "skill server" or "robot", named in every message that is not its own."""
    code, details = error.code(), plain(error.details() or "")
    where = f"{service} at {address}"
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Unavailable(f"{where} {_why_unavailable(code, details)}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            own = "" if details in ("", "Deadline Exceeded") else f": {details}"  # the service gave up, and says why
            return DeadlineExceeded(f"{where} {'ended the call' if own else 'did not answer in time'}{own}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in details:
            return InvalidRequest(f"{where}: a message is larger than {_limit(details)}")
        case grpc.StatusCode.UNIMPLEMENTED:
            return Unsupported(f"{where} does not know this call; is that the right address?")
        case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
            return ERRORS[code](f"{where}: {details or code.name}")
        case _ if code in ERRORS:
            return _with_details(ERRORS[code](details or f"{where} answered {code.name}"), error)
    return ServerFault(f"{where} answered {code.name}: {details}")


def _with_details(problem: SkillError, error: grpc.RpcError) -> SkillError:
    match problem:
        case InvalidRequest() if (found := _detail(error, BadRequest())) and found.field_violations:
            problem.field = found.field_violations[0].field
        case Busy() if found := _detail(error, RetryInfo()):
            problem.retry_after = max(0.0, found.retry_delay.ToNanoseconds() / 1e9)
        case Stopped() if (found := _detail(error, ErrorInfo())) and found.reason == LEASE_LOST:
            return LeaseLost(str(problem))
    return problem


def _detail(error: grpc.RpcError, kind: T) -> T | None:
    """The status's detail of that kind, into which it is read; None where a server sends none that can be read."""
    try:
        status = rpc_status.from_call(error)
        return next((kind for detail in (status.details if status else ()) if detail.Unpack(kind)), None)
    except (ValueError, DecodeError):
        return None


def _limit(details: str) -> str:
    """The one that gRPC names: the robot's, the skill server's or the client's own."""
    named = re.search(r"vs\. (\d+)", details)
    limit = int(named[1]) if named else MAX_MESSAGE
    return f"{limit // 2**20} MiB" if limit >= 2**20 else f"{limit // 2**10} KiB"


def _why_unavailable(code: grpc.StatusCode, details: str) -> str:
    if "Connection refused" in details:
        return "cannot be reached: nothing listens there"
    if "Hostname Verification" in details:
        return "shows a certificate that is not for this host name"
    if untrusted := re.search("CERTIFICATE_VERIFY_FAILED(: [^:]+)?", details):
        return f"shows a certificate that the given authority does not vouch for{untrusted[1] or ''}"
    if "http1.x server" in details or "ALPN" in details:
        return "does not speak gRPC; is that the right address? A robot's guard can stop it and nothing else"
    if "WRONG_VERSION_NUMBER" in details:
        return "does not speak TLS; connect in plain text"
    if "failed to connect" in details and any(sign in details for sign in ("closed", "reset")):
        return "hangs up at once: does it want TLS, or a client certificate that it trusts?"
    if code is grpc.StatusCode.CANCELLED:
        return "has ended the call: it was shut down, or the request was too slow to arrive"
    if any(sign in details for sign in ("closed", "reset", "GOAWAY", "Broken pipe")):
        return "has died or was shut down"
    if "before receiving SETTINGS" in details:
        return "lets itself be connected to and says nothing: it is frozen, or is no gRPC service"
    if "ping" in details or "keepalive" in details:
        return "has stopped responding"
    return f"is unavailable: {details}"
