"""Serves the page to browsers: live beside a run, and of the folders that runs left.

    with PageServer(Hub(link), None, "127.0.0.1", 0, Access()) as server:
        print(server.url)

Whoever may not look is asked for a token once. Whatever a browser sends is from the page itself: another web site's
requests are refused by their Origin, and by the Host that they are for, so that no name of somebody else's leads here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import json
import logging
import os
import secrets
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from saycan_qt.page import commands
from saycan_qt.page.document import page, policy
from saycan_qt.page.hub import Hub, Page
from saycan_qt.page.runs import PLAN, TYPES, NoRun, Runs, inside, own, read_plan
from skills.errors import PermissionDenied, SkillError, Unauthenticated, Unavailable
from skills.security.access import Access
from skills.wire.conventions import join_address, plain

log = logging.getLogger(__name__)

MOST_PAGES = 32  # that look on at a time
MOST_ENTERED = 1000  # browsers whose tokens are known
MOST_CONNECTIONS = 256
LARGEST_MESSAGE = 32 << 10  # [bytes] from a browser
AHEAD = 4  # messages that a page is sent before it has said that the first has come
PATIENCE = 30.0  # [s] that a page may say nothing of what it was sent; a hidden one is slow
BETWEEN = 0.02  # [s] between two commands of one page
ADMIT_EVERY = 5.0  # [s] between two looks whether a page may still look on
REFUSED, BUSY = 4401, 4429  # codes that a WebSocket is closed with


class PageServer:
    """Serves at `url` from when it is made until it is closed, in a thread of its own."""

    def __init__(
        self,
        hub: Hub | None,  # of a run that goes on; None: there is none
        runs: Runs | Path | None,  # a folder of runs, or one run's; None: those of the hub
        host: str,
        port: int,  # 0: a free one
        access: Access | None = None,  # None: whoever reaches a loopback address
        names: tuple[str, ...] = (),  # of this machine, by which browsers may call it besides its own
    ) -> None:
        """Raises AccessError for a host that other machines can reach, where Access.check does; InvalidRequest for what
        is no port, Unavailable for one that is taken."""
        access = Access.at(host, port, access)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            why = f"{join_address(host, port)} for the page: {os.strerror(error.errno or 0)}"
            raise Unavailable(f"cannot listen on {why}; port 0 takes any free one") from None
        self.address = join_address(host, listening.getsockname()[1])
        anywhere = host in ("0.0.0.0", "::")
        called = join_address(socket.gethostname() if anywhere else host, listening.getsockname()[1])
        self.url = f"http{'s' if access.tls else ''}://{called}/"
        self._socket = listening
        app = _Application(hub, runs, access, {host, *names}, listening.getsockname()[1])
        config = uvicorn.Config(
            _Guarded(app.starlette(), app),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="websockets-sansio",
            ws_max_size=LARGEST_MESSAGE,
            ws_per_message_deflate=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
            ssl_context_factory=None if access.tls is None else lambda *_: _context(access),
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="page", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(SystemExit):
            self._server.run(sockets=[self._socket])

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(3)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _context(access: Access) -> ssl.SSLContext:
    """Each new connection is made with what was read last."""
    assert access.tls is not None, "it is asked for where there is TLS"
    context = access.tls.context

    def renew(connection: ssl.SSLObject, name: str, first: ssl.SSLContext) -> None:
        if access.tls is not None and access.tls.context is not first:
            connection.context = access.tls.context

    context.sni_callback = renew
    return context


class _Guarded:
    """Asks of every request that it is for this machine and from this page, and says what a browser may do with the
    answer."""

    def __init__(self, app: ASGIApp, application: _Application) -> None:
        self._app, self._application = app, application
        self._headers = [
            (b"content-security-policy", policy().encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cache-control", b"no-cache"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._application.stranger(scope)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self._headers]}
            await send(message)

        if refusal is None:
            await self._app(scope, receive, answer)
        elif scope["type"] == "http":
            await PlainTextResponse(refusal + "\n", 403)(scope, receive, answer)
        else:
            await receive()
            await send({"type": "websocket.close", "code": REFUSED, "reason": refusal[:120]})


class _Application:
    def __init__(self, hub: Hub | None, runs: Runs | Path | None, access: Access, names: set[str], port: int) -> None:
        self.hub, self.access = hub, access
        self.runs = runs
        self.names = {name.lower() for name in (*names, "localhost", socket.gethostname())}
        self.cookie = f"{'__Host-' if access.tls else ''}saycan-qt-{port}"  # cookies know no ports
        self.entered: OrderedDict[str, str] = OrderedDict()  # what a browser shows -> its token
        self.stopping = ThreadPoolExecutor(1, "stop")  # waits for nothing else
        self._on_its_way: asyncio.Task[dict[str, Any]] | None = None
        self.looking = ThreadPoolExecutor(2, "preview")

    def starlette(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self.front, methods=["GET"]),
                Route("/enter", self.enter, methods=["POST"]),
                Route("/stop", self.stop, methods=["POST"]),
                Route("/runs/{path:path}", self.shown, methods=["GET"]),
                WebSocketRoute("/watch", self.watch),
            ]
        )

    # -- who is let in -------------------------------------------------------------------------------------------------

    def stranger(self, scope: Scope) -> str | None:
        """Why this request is none of the page's own; None where it is. A browser is led to this machine by a name of
        somebody else's (DNS rebinding), but by no number."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        try:
            host = urlsplit(f"//{hosts[0]}").hostname if len(hosts) == 1 else None
        except ValueError:
            host = None
        if host is None:
            return "the request does not say which host it is for"
        if not (host in self.names or _is_number(host)):
            told = "--name (--live-name of run and session) has it answer to that name"
            return f"this page is not at {plain(host)[:100]!r}; {told}"
        origin, own = headers.get("origin"), f"http{'s' if self.access.tls else ''}://{hosts[0]}"
        if origin is not None and origin.lower() != own.lower():
            return f"the request comes from {plain(origin)[:100]}, not from this page"
        if origin is None and (scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")):
            return "the request does not say where it comes from (Origin)"
        return None

    def admit(self, method: str, connection: HTTPConnection) -> str:
        """The name of who asks. Raises Unauthenticated or PermissionDenied."""
        shown = connection.headers.get("authorization")
        token = self.entered.get(connection.cookies.get(self.cookie, ""))
        if shown is None and token is not None:
            shown = f"Bearer {token}"
        return self.access.admit(method, [("authorization", shown)] if shown else [])

    async def enter(self, request: Request) -> Response:
        """A token, shown once, for a cookie."""
        token = (await _body(request, 1000)).strip()
        try:
            self.access.admit(commands.WATCH, [("authorization", f"Bearer {token}")])
        except (Unauthenticated, PermissionDenied) as error:
            await asyncio.sleep(0.5)
            return PlainTextResponse(str(error), 403)
        shown = secrets.token_urlsafe(32)
        self.entered[shown] = token
        if len(self.entered) > MOST_ENTERED:
            self.entered.popitem(last=False)
        response = PlainTextResponse("")
        secure = self.access.tls is not None
        response.set_cookie(self.cookie, shown, path="/", httponly=True, samesite="strict", secure=secure)
        return response

    def let_in(self, request: Request) -> Response | None:
        """None, or the form that asks for a token."""
        try:
            self.admit(commands.WATCH, request)
        except Unauthenticated as error:
            reason = str(error) if request.cookies.get(self.cookie) or "authorization" in request.headers else ""
            return HTMLResponse(page({"mode": "enter", "reason": reason}), 401)
        except PermissionDenied as error:
            return HTMLResponse(page({"mode": "enter", "reason": str(error)}), 403)
        return None

    # -- what was done -------------------------------------------------------------------------------------------------

    def folder(self, name: str) -> Path | None:
        if isinstance(self.runs, Runs):
            return self.runs.find(name)
        if isinstance(self.runs, Path):
            return self.runs if name == self.runs.name else None
        return None if self.hub is None else self.hub.state.folders.get(name)

    def front(self, request: Request) -> Response:
        if (form := self.let_in(request)) is not None:
            return form
        if self.hub is not None:
            return HTMLResponse(page({"mode": "live"}))
        if isinstance(self.runs, Path):
            return RedirectResponse(f"/runs/{quote(os.fsencode(self.runs.name))}/", 303)
        assert self.runs is not None, "there is something to show"
        return HTMLResponse(page({"mode": "index", "runs": self.runs.list()}))

    def shown(self, request: Request) -> Response:
        """runs/NAME/ is a run, runs/NAME/FILE a file of it; in a session's folder a run's name has two parts."""
        if (form := self.let_in(request)) is not None:
            return form
        parts = request.path_params["path"].split("/")
        for depth in (1, 2):
            folder = self.folder("/".join(parts[:depth]))
            if folder is not None and len(parts) > depth:
                name = "/".join(parts[depth:])
                return self.file(folder, name) if name else self.run(folder)
        return PlainTextResponse("there is no such run here\n", 404)

    def run(self, folder: Path) -> Response:
        try:
            plan = read_plan(folder)
        except NoRun as error:
            return PlainTextResponse(f"{plain(str(error))}\n", 404)
        plan["video"] = plan.get("video") if inside(folder, plan.get("video")) else None
        boot = {"mode": "replay", "plan": plan, "files": {}, "one": isinstance(self.runs, Path)}
        return HTMLResponse(page(boot))

    def file(self, folder: Path, name: str) -> Response:
        path = own(folder, PLAN) if name == PLAN else inside(folder, name)
        if path is None:
            return PlainTextResponse("there is no such picture or video\n", 404)
        return FileResponse(path, media_type="application/json" if name == PLAN else TYPES[path.suffix])

    # -- what goes on --------------------------------------------------------------------------------------------------

    async def stop(self, request: Request) -> Response:
        """For a page whose WebSocket is not there, and for programs."""
        try:
            self.admit(commands.METHODS["stop"], request)
        except (Unauthenticated, PermissionDenied) as error:
            return JSONResponse({"ok": False, "text": str(error)}, 403)
        if self.hub is None:
            return JSONResponse({"ok": False, "text": "no run goes on here"}, 404)
        return JSONResponse(await self._stop(self.hub))

    async def _stop(self, hub: Hub) -> dict[str, Any]:
        """One that comes while another is on its way goes with it: it may be the same, by another road."""
        if self._on_its_way is None:
            self._on_its_way = asyncio.create_task(self._stop_now(hub))
            self._on_its_way.add_done_callback(lambda _: setattr(self, "_on_its_way", None))
        return await asyncio.shield(self._on_its_way)

    async def _stop_now(self, hub: Hub) -> dict[str, Any]:
        began = time.monotonic()
        try:
            text = await asyncio.get_running_loop().run_in_executor(self.stopping, hub.stop)
        except SkillError as error:
            return {"ok": False, "text": f"the robot is not stopped: {plain(str(error))}"}
        return {"ok": True, "text": text, "ms": round(1000 * (time.monotonic() - began))}

    async def watch(self, socket: WebSocket) -> None:
        try:
            self.admit(commands.WATCH, socket)
        except (Unauthenticated, PermissionDenied) as error:
            await socket.accept()  # else the page hears no reason
            await socket.close(REFUSED, str(error)[:120])
            return
        await socket.accept()
        if self.hub is None or self.hub.watched >= MOST_PAGES:
            await socket.close(BUSY, "so many look on already" if self.hub else "no run goes on here")
            return
        looker = self.hub.join(asyncio.get_running_loop())
        watching = _Watching(self, self.hub, looker, socket)
        try:
            await watching.run()
        finally:
            self.hub.leave(looker)


class _Watching:
    """One page that looks on: it is told what happens no faster than it says that it heard."""

    def __init__(self, app: _Application, hub: Hub, looker: Page, socket: WebSocket) -> None:
        self._app, self._hub, self._looker, self._socket = app, hub, looker, socket
        self._sent = self._seen = 0
        self._heard = asyncio.Event()
        self._sending = asyncio.Lock()
        self._works: set[asyncio.Task[None]] = set()
        self._previews = False  # is one made?
        self._wanted: str | None = None  # the skill that is looked at next

    async def run(self) -> None:
        tasks = [asyncio.create_task(work()) for work in (self._tell, self._hear, self._check)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, *self._works):
            task.cancel()
        await asyncio.gather(*tasks, *self._works, return_exceptions=True)
        for task in done:
            if (error := task.exception()) and not isinstance(error, (WebSocketDisconnect, RuntimeError, OSError)):
                log.error("a page is left: %s", error, exc_info=error)
        await self._close(1000, "")

    async def _close(self, code: int, reason: str) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):  # it is gone
            await self._socket.close(code, reason[:120])

    async def _tell(self) -> None:
        while True:
            await self._looker.wait()
            while self._looker.outbox:
                await self._room()
                events, frames = self._hub.take(self._looker)
                if events:
                    await self._send(json.dumps({"events": events}))
                for frame in frames:
                    await self._send(frame)

    async def _room(self) -> None:
        """Until the page has heard most of what it was sent."""
        while self._sent - self._seen >= AHEAD:
            self._heard.clear()
            await asyncio.wait_for(self._heard.wait(), PATIENCE)

    async def _send(self, message: str | bytes) -> None:
        self._sent += 1
        async with self._sending:
            if isinstance(message, str):
                await self._socket.send_text(message)
            else:
                await self._socket.send_bytes(message)

    async def _reply(self, **reply: Any) -> None:
        """At once, whatever else waits."""
        async with self._sending:
            await self._socket.send_text(json.dumps({"reply": reply}))

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(ADMIT_EVERY)
            try:
                self._app.admit(commands.WATCH, self._socket)
            except (Unauthenticated, PermissionDenied) as error:
                await self._close(REFUSED, str(error))
                return

    async def _hear(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] != "websocket.receive":
                return
            try:
                command = commands.read(message.get("text") or "")
            except commands.NoCommand as error:
                await self._reply(ok=False, text=str(error))
                await asyncio.sleep(BETWEEN)
                continue
            if "seen" in command:
                self._seen = min(command["seen"], self._sent)
                self._heard.set()
                continue
            do = command["do"]
            try:
                self._app.admit(commands.METHODS[do], self._socket)
            except (Unauthenticated, PermissionDenied) as error:
                await self._reply(do=do, ok=False, text=str(error))
                continue
            if do == "stop":
                self._work(self._stop())
                continue
            if do == "preview":
                self._wanted = command["skill"]
                if not self._previews:  # one after the other, the newest next
                    self._previews = True
                    self._work(self._preview())
            elif self._hub.link is not None:
                self._hub.link.send(command)
                await self._reply(do=do, ok=True, text="")
            await asyncio.sleep(BETWEEN)

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._works.discard)

    async def _stop(self) -> None:
        await self._reply(do="stop", **await self._app._stop(self._hub))

    async def _preview(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while (skill := self._wanted) is not None:
                self._wanted = None
                try:
                    found = await loop.run_in_executor(self._app.looking, self._hub.preview, skill)
                except SkillError as error:
                    await self._reply(do="preview", ok=False, skill=skill, text=plain(str(error)))
                    continue
                maps = {name: _data(jpeg) for name, jpeg in found["maps"].items()}
                await self._reply(do="preview", ok=True, text="", **{**found, "maps": maps})
        finally:
            self._previews = False


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _data(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


async def _body(request: Request, most: int) -> str:
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > most:
            return ""
    return content.decode(errors="replace")
