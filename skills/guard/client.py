"""Stop by the guard's own road, which works whatever becomes of the robot's service.

stop_robot("127.0.0.1:50062")        # as `curl -X POST http://127.0.0.1:50062/stop` does
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import tempfile
from contextlib import closing
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
    try:
        with closing(_connection(host, port, credentials.tls, timeout)) as connection:
            connection.request("POST", "/stop", headers=dict(credentials.metadata))
            response = connection.getresponse()
            reply = json.loads(response.read(65536))
            if response.status == 200:
                return bool(reply["halted"])
            problem: type[SkillError] = REFUSED.get(response.status, Unavailable)
            raise problem(f"{where}: {reply.get('error', response.reason)}")
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unavailable(f"{where} does not answer: {error or type(error).__name__}") from None


def _connection(host: str, port: int, tls: ClientTLS | None, timeout: float) -> http.client.HTTPConnection:
    if tls is None:
        return http.client.HTTPConnection(host, port, timeout=timeout)
    return http.client.HTTPSConnection(host, port, timeout=timeout, context=_context(tls))


def _context(tls: ClientTLS) -> ssl.SSLContext:
    """It trusts as gRPC does: Python's default is stricter from 3.13 on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=tls.ca.decode("ascii", "ignore"))  # more is in comments only
    if tls.certificate and tls.key:
        with tempfile.TemporaryDirectory() as folder:  # OpenSSL reads these from a file only
            file = Path(folder) / "pair"
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
            file.write_bytes(tls.certificate + b"\n" + tls.key)
            context.load_cert_chain(file)
    return context
