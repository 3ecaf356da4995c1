"""An endpoint that speaks openpi's websocket protocol: a robot written for openpi is given this server's actions.

    endpoint = Endpoint("127.0.0.1", 8000)         # its port is taken, and refuses connections as yet
    with serve(library, critic, actor) as server:
        endpoint.start(server.servicer)
        ...
        endpoint.stop()

A connection is told first what the model is (`embodiment`, `keys`, `skills`, ...). Each message after that is an
observation with a prompt (`skills.openpi.keys`), answered by `{"actions": (N, D) float32, "server_timing": {...}}`, one
action or a chunk. What cannot be answered is answered by a line of text, which `openpi_client` raises; the connection
stays. `ws://HOST:PORT/NAME` asks the model of that name, `GET /healthz` is for load balancers.

History lives with the connection. It begins anew with another prompt, `reset: True` in an observation, another model,
or after a silence that would end a control stream; until then a robot that was answered has one of the server's places.
One thread serves all connections: a silent one costs a descriptor, and of strangers' there are few.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from skills.embodiment import Embodiment
from skills.errors import (
    Busy,
    DeadlineExceeded,
    InvalidRequest,
    PermissionDenied,
    ServerFault,
    SkillError,
    Unauthenticated,
    Unavailable,
    UnknownSkill,
)
from skills.openpi.codec import MAX_BYTES, MAX_LIST, pack, unpack
from skills.openpi.keys import Keys
from skills.security.access import Access
from skills.server import SkillServicer
from skills.serving.calls import Calls
from skills.serving.hosting import Model
from skills.serving.watching import NOBODY, Watcher
from skills.types import Actor, ChunkedActor, Observation, Reader, gives_chunks
from skills.wire.conventions import code_of, join_address
from skills.wire.messages import changed

log = logging.getLogger(__name__)

CALL = "/openpi/Infer"  # what a connection is called in logs and metrics
NEEDS = "/skills.v1.SkillService/Control"  # whoever may call this may connect
HEALTH = "/healthz"
SPARE = 32  # connections beyond the robots that are controlled: those that are silent, and those that are refused
HANDSHAKE = 3.0  # [s] for a connection to say what it wants
FRAGMENTS = 5.0  # [s] for a message's further fragments, and for a reply to leave
MAX_FRAGMENTS = 256  # of a message; openpi's own clients send it whole
CLOSE = 2.0  # [s] for connections to end when the server does
ANSWER = 30.0  # [s] for the model
PING_EVERY, PING_TIMEOUT = 5.0, 15.0  # [s]; clients of websockets answer them, whatever their robot does
RESET = "reset"
STATUSES = {
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    PermissionDenied: HTTPStatus.FORBIDDEN,
    UnknownSkill: HTTPStatus.NOT_FOUND,
    InvalidRequest: HTTPStatus.NOT_FOUND,
    Busy: HTTPStatus.SERVICE_UNAVAILABLE,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
_frames = logging.getLogger("skills.openpi.frames")  # what strangers do to the protocol; not for a log to fill with
_frames.setLevel(logging.CRITICAL)


class Endpoint:
    """Takes its address at once; serves from `start` to `stop`."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,  # 0: a free one
        access: Access | None = None,  # who may connect: whoever may call Control; None: whoever reaches loopback
        keys: Keys | None = None,  # of the robot that models are for which fit it; None: the usual ones
        watcher: Watcher = NOBODY,  # is told of connections
    ) -> None:
        """Raises AccessError for a host that other machines can reach, where Access.check does, and Unavailable."""
        self._access, self._keys, self._calls = access or Access(), keys, Calls(watcher)
        self._access.check(host)
        self._socket = _bound(host, port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"ws{'s' if self._access.tls else ''}://{join_address(host, self.port)}"
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="openpi reader")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openpi", daemon=True)
        self._servicer: SkillServicer
        self._server: Server | None = None
        self._connected = 0
        self._serving: set[asyncio.Task[None]] = set()

    def start(self, servicer: SkillServicer) -> None:
        """From now on it is answered. Raises SkillError where the first model does not say for which robot it is."""
        self._servicer = servicer
        self._keys_of(servicer.models[""])
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        except OSError as error:  # somebody else was faster
            raise Unavailable(f"cannot listen on port {self.port} for openpi: {error.strerror}") from None

    def stop(self) -> None:
        """Connections are told that it goes away."""
        if self._server is not None:
            asyncio.run_coroutine_threadsafe(self._close(self._server), self._loop).result()
            self._server = None
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()
        self._socket.close()
        self._threads.shutdown(wait=False)

    async def _listen(self) -> None:
        self._server = await serve(
            self._serve,
            sock=self._socket,
            ssl=self._context(),
            compression=None,
            origins=[None],  # a web page in somebody's browser is no robot
            process_request=self._admit,
            server_header=None,
            open_timeout=HANDSHAKE,
            close_timeout=1.0,
            ping_interval=PING_EVERY,
            ping_timeout=PING_TIMEOUT,
            max_size=MAX_BYTES,
            max_queue=1,  # what a client sends ahead stays with it
            logger=_frames,
            create_connection=self._counted(),
        )

    def _context(self) -> ssl.SSLContext | None:
        """Each new connection is made with what was read last; None: plain text."""
        if self._access.tls is None:
            return None

        def renew(connection: ssl.SSLObject, name: str | None, given: ssl.SSLContext) -> None:
            if self._access.tls is not None:
                connection.context = self._access.tls.context

        context = self._access.tls.context
        context.sni_callback = renew  # type: ignore[assignment]  # of every connection, whatever name it asks for
        return context

    async def _close(self, server: Server) -> None:
        server.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE):
                await server.wait_closed()
        waiting = list(self._serving)  # for a model, whose answer nobody waits for any more
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    def _counted(self) -> type[ServerConnection]:
        endpoint = self

        class Counted(ServerConnection):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                endpoint._connected += 1
                super().connection_made(transport)
                if endpoint._connected > endpoint._servicer.limits.streams + SPARE:
                    self.transport.abort()

            def connection_lost(self, exc: Exception | None) -> None:
                endpoint._connected -= 1
                super().connection_lost(exc)

        return Counted

    # A connection

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """None: as a websocket. Before anything else is read of it."""
        try:
            if request.path == HEALTH:
                self._servicer.models[""].acting  # noqa: B018  # raises what it lacks
                return connection.respond(HTTPStatus.OK, "OK\n")
            shown = request.headers.get_all("Authorization")
            caller = self._access.admit(NEEDS, [("authorization", _token(value)) for value in shown])
            self._keys_of(self._model(request))
        except SkillError as error:
            self._calls.refused(CALL, code_of(error).name, join_address(*connection.remote_address[:2]))
            status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), None)
            return connection.respond(status or HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n")
        connection.username = caller  # of the token's holder, where websockets keeps a user's
        return None

    def _model(self, request: Request) -> Model:
        model = self._servicer.models[request.path.partition("?")[0].strip("/")]
        model.acting  # noqa: B018  # raises what it lacks
        return model

    def _keys_of(self, model: Model) -> Keys:
        if model.embodiment is None:
            raise InvalidRequest(f"{model.actor_id or 'the model'} does not say for which robot it is")
        if self._keys is not None and not model.embodiment.misfit(self._keys.embodiment):
            return self._keys.narrowed(model.embodiment)
        return Keys.of(model.embodiment)

    async def _serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None, "it was admitted"
        call, code, task = self._calls.begin(CALL, connection.username, ()), "OK", asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            with ExitStack() as place:
                await self._converse(connection, _Robot(self, connection, place))
        except ConnectionClosed as closed:
            code = "OK" if closed.rcvd is not None and closed.rcvd.code in (1000, 1001) else "CANCELLED"
        except TimeoutError:  # neither sends the rest nor reads
            code = "DEADLINE_EXCEEDED"
            connection.transport.abort()
        except Exception:
            log.exception("an openpi connection failed")
            code = "INTERNAL"
            with suppress(ConnectionClosed):
                await connection.close(1011, "the service failed; its log has the reason")
        finally:
            self._serving.discard(task)
            call.end(code)

    async def _converse(self, connection: ServerConnection, robot: _Robot) -> None:
        await _send(connection, pack(robot.metadata()))
        before = None  # [s] that the last answer took, until it had left
        while True:
            data = await robot.next_message()
            began = time.monotonic()
            try:
                actions, seconds = await robot.answer(data)
            except SkillError as error:
                log.debug("an openpi client is refused: %s", error)
                await _send(connection, str(error))
                continue
            timing = {"infer_ms": 1000 * seconds} | ({} if before is None else {"prev_total_ms": 1000 * before})
            await _send(connection, pack({"actions": actions, "server_timing": timing}))
            before = time.monotonic() - began


class _Robot:
    """What one connection has: a place, a history, and what it was told of the model."""

    def __init__(self, endpoint: Endpoint, connection: ServerConnection, place: ExitStack) -> None:
        assert connection.request is not None
        self._endpoint, self._connection, self._place = endpoint, connection, place
        self._servicer, self._request = endpoint._servicer, connection.request
        self._model = endpoint._model(self._request)
        self._keys = endpoint._keys_of(self._model)
        self._actor, self._chunk = _asked(self._model.acting, len(self._keys.embodiment.action))
        self._history: deque[Observation] = deque(maxlen=self._keys.embodiment.history)
        self._instruction, self._placed = "", False
        self._done: np.ndarray | None = None  # the action before; of chunks it is not known how much was carried out

    def metadata(self) -> dict[str, Any]:
        skills = [skill.name for skill in self._servicer.library if skill.learned]
        return {
            "embodiment": self._keys.embodiment.to_dict(),
            "keys": self._keys.describe(),
            "model": self._model.actor_id,
            "models": [name for name, _ in self._servicer.models],
            "skills": skills[:MAX_LIST],  # clients read no more
            "skills_total": len(skills),
            "action_horizon": self._chunk,
        }

    async def next_message(self) -> bytes:
        """Raises ConnectionClosed, TimeoutError for a message that does not come to its end."""
        while True:
            message = self._connection.recv_streaming()
            if (begun := await self._begun(message)) is None:
                continue
            parts = [begun]
            async with asyncio.timeout(FRAGMENTS):
                async for part in message:
                    parts.append(part)
                    if len(parts) > MAX_FRAGMENTS:
                        raise TimeoutError
            return b"".join(part.encode() if isinstance(part, str) else part for part in parts)

    async def _begun(self, message: AsyncIterator[bytes | str]) -> bytes | str | None:
        """A message's first part; None where a silence has cost the place."""
        patience = self._patience if self._placed else None
        try:
            async with asyncio.timeout(patience):
                return await anext(message)
        except TimeoutError:
            self._leave()
            return None

    @property
    def _patience(self) -> float:
        """[s] of silence after which a place is another robot's: while a chunk lasts, nothing need come."""
        period = self._keys.embodiment.period or 0.0
        return self._servicer.limits.stream_timeout_of(self._keys.embodiment) + (self._chunk - 1) * period

    def _leave(self) -> None:
        self._place.close()
        self._placed = False
        self._history.clear()

    async def answer(self, data: bytes) -> tuple[np.ndarray, float]:
        """(N, D) float32 and the seconds that they took to compute. Raises SkillError."""
        message = unpack(data)
        if message.pop(RESET, False):
            self._history.clear()
        self._follow_reload()
        observation, instruction = self._keys.read(message)
        if not self._placed:
            self._place.enter_context(self._servicer.place())
            self._placed = True
        if instruction != self._instruction:
            self._history.clear()
            if isinstance(self._model.acting, Reader):
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._endpoint._threads, self._model.acting.know, [instruction])
            self._instruction = instruction
        if self._history and (problem := changed([self._history[-1], observation])):
            raise InvalidRequest(problem)
        self._history.append(replace(observation, action=self._done if self._history else None))
        found, seconds = await self._infer(instruction)
        actions = _checked(found, self._keys.embodiment, self._chunk, instruction)
        self._done = actions[0] if self._chunk == 1 else None
        return actions, seconds

    def _follow_reload(self) -> None:
        model = self._endpoint._model(self._request)
        if model is self._model:
            return
        actor, chunk = _asked(model.acting, len(self._keys.embodiment.action))
        if model.embodiment != self._model.embodiment or chunk != self._chunk:
            raise Unavailable("the model has changed, and is for another robot or gives other chunks; connect again")
        self._model, self._actor = model, actor
        self._history.clear()
        self._instruction = ""  # which this model must read, too

    async def _infer(self, instruction: str) -> tuple[np.ndarray, float]:
        deadline = time.monotonic() + ANSWER

        def wanted() -> bool:
            return self._connection.state is State.OPEN and time.monotonic() < deadline

        asked = self._servicer.infer(self._actor, tuple(self._history), instruction, wanted)
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + ANSWER):
                return await asyncio.wrap_future(asked)
        except (TimeoutError, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and not asked.cancelled():
                raise  # this server ends
            raise DeadlineExceeded(f"the model was not free within {ANSWER:g} s") from None
        except ValueError as error:  # its word on the request
            raise InvalidRequest(" ".join(str(error).split())) from error
        except SkillError:
            raise
        except (Exception, SystemExit) as error:  # of which the latter would end the loop
            log.error("a model failed", exc_info=error)
            raise ServerFault("the service failed; its log has the reason") from None


class _Chunks:
    """A chunked actor, asked for whole chunks in the line of those who act."""

    def __init__(self, actor: ChunkedActor, dimensions: int) -> None:
        self._actor, self._committed = actor, np.zeros((0, dimensions), np.float32)

    def act(self, history: Any, instruction: str) -> np.ndarray:
        """(N, D) float32."""
        return self._actor.act_chunk(history, instruction, self._committed)


def _asked(actor: Actor, dimensions: int) -> tuple[Actor, int]:
    """Whom the line asks, and how many actions there will be."""
    if gives_chunks(actor):
        return _Chunks(actor, dimensions), actor.chunk
    return actor, 1


def _checked(actions: np.ndarray, embodiment: Embodiment, chunk: int, instruction: str) -> np.ndarray:
    """(N, D) float32, finite."""
    actions = np.atleast_2d(np.asarray(actions, np.float32))
    if actions.shape != (chunk, len(embodiment.action)) or not np.isfinite(actions).all():
        raise ServerFault(f"the actor gave no valid actions for {instruction!r}: shape {actions.shape}")
    return actions


async def _send(connection: ServerConnection, reply: bytes | str) -> None:
    """Raises TimeoutError where the client does not read."""
    async with asyncio.timeout(FRAGMENTS):
        await connection.send(reply)


def _token(authorization: str) -> str:
    """openpi's clients say `Api-Key`, others `Bearer`."""
    scheme, _, token = authorization.partition(" ")
    return f"Bearer {token}" if scheme.lower() == "api-key" else authorization


def _bound(host: str, port: int) -> socket.socket:
    where = join_address(host, port)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free, a listener's is not
        try:
            found.bind(address)
        except OSError:
            found.close()
            raise
    except OSError as error:
        reason = f"cannot listen on {where} for openpi: {error.strerror}; port 0 takes any free one"
        raise Unavailable(reason) from None
    return found
