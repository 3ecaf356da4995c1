"""A proxy on loopback between clients and a server, for faults of the network."""

import socket
import threading
from contextlib import suppress


class Proxy:
    """Passes bytes on; can hold them back (`flows`), or cut the connection after some more of them (`left`)."""

    def __init__(self, address, cuts="answers"):  # or "requests": whose bytes are counted
        host, port = address.rsplit(":", 1)
        self._server, self._cuts = (host, int(port)), cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.flows, self.left = threading.Event(), None  # left: [bytes] until the cut; None: no cut
        self.flows.set()
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.flows.set()
        self._listener.close()
        self.cut()

    def cut(self):
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            self._sockets += [client, server]
            threading.Thread(target=self._pass_on, args=(client, server, self._cuts == "requests"), daemon=True).start()
            threading.Thread(target=self._pass_on, args=(server, client, self._cuts == "answers"), daemon=True).start()

    def _pass_on(self, source, target, counted):
        with suppress(OSError):
            while data := source.recv(65536):
                self.flows.wait(10)
                if counted and self.left is not None:
                    data, self.left = data[: self.left], self.left - len(data)
                target.sendall(data)
                if counted and self.left is not None and self.left <= 0:
                    self.cut()
