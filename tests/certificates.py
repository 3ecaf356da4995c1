"""An authority, a server's certificate for localhost and 127.0.0.1, a client's, and a stranger's, made with openssl 3.

python tests/certificates.py DIR
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SERVER = "subjectAltName=DNS:localhost,IP:127.0.0.1"


def make(folder, days=30):
    """ca.pem, and server and client with .pem and .key that it signed, valid for so many days; stranger, which signed
    itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    own = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", str(days))
    for name in ("ca", "stranger"):
        openssl(folder, *own, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    signed = (*own, "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", SERVER, "-addext", "basicConstraints=CA:FALSE")
    for name in ("server", "client"):
        openssl(folder, *signed, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    for key in folder.glob("*.key"):
        key.chmod(0o600)
    return folder


def expire(folder, name):
    """Sign NAME.pem anew, by itself, as of a time that is over."""
    openssl(folder, "x509", "-in", f"{name}.pem", "-signkey", f"{name}.key", "-days", "-1", "-out", f"{name}.pem")


def openssl(folder, *arguments):
    return subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


if __name__ == "__main__":
    make(sys.argv[1])
