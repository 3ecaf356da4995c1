"""Stop by the guard's own road, which works whatever becomes of the robot's service.

stop_robot("127.0.0.1:50062")        # as `curl -X POST http://127.0.0.1:50062/stop` does
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import tempfile
from pathlib import Path

from skills.errors import PermissionDenied, SkillError, Unauthenticated, Unavailable
from skills.security.channel import Credentials
from skills.security.tls import ClientTLS
from skills.wire.conventions import split_address

TIMEOUT = 2.0  # [s]
REFUSED = {401: Unauthenticated, 403: PermissionDenied}


def stop_robot(address: str, credentials: Credentials | None = None, timeout: float = TIMEOUT) -> bool:
    """Nothing moves the robot when this returns, until it is reset; True where its driver has said that it halted.
    Raises SkillError where the guard cannot be reached or does not let this caller stop it."""
    credentials = credentials or Credentials()
    credentials.check(address)
    host, port = split_address(address)
    where = f"the robot's guard at {address}"
    connection = (
        http.client.HTTPConnection(host, port, timeout=timeout)
        if credentials.tls is None
        else http.client.HTTPSConnection(host, port, timeout=timeout, context=_context(credentials.tls))
    )
    try:
        connection.request("POST", "/stop", headers=dict(credentials.metadata))
        response = connection.getresponse()
        reply = json.loads(response.read(65536))
        if response.status == 200:
            return bool(reply["halted"])
        problem: type[SkillError] = REFUSED.get(response.status, Unavailable)
        raise problem(f"{where}: {reply.get('error', response.reason)}")
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        raise Unavailable(f"{where} does not answer: {error or type(error).__name__}") from None
    finally:
        connection.close()


def _context(tls: ClientTLS) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=tls.ca.decode())
    if tls.certificate and tls.key:
        with tempfile.TemporaryDirectory() as folder:  # OpenSSL reads these from a file only
            file = Path(folder) / "pair"
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
            file.write_bytes(tls.certificate + b"\n" + tls.key)
            context.load_cert_chain(file)
    return context
