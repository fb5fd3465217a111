"""A certificate of a name, signed by an authority of its own, as rustls wants it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest


class Certificates(NamedTuple):
    """The PEM files of the authority, of the server's certificate, and of its key."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path, name: str) -> Certificates:
    made = Certificates(folder / "authority.pem", folder / "server.pem", folder / "server.key")
    extension = folder / "extension"
    kind = "IP" if name[0].isdigit() else "DNS"
    extension.write_text(f"subjectAltName={kind}:{name}\nbasicConstraints=CA:FALSE\n")
    request = folder / "request"
    new = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj"]
    sign = ["openssl", "x509", "-req", "-days", "2", "-CAcreateserial", "-extfile", str(extension)]
    sign += ["-CA", str(made.authority), "-CAkey", str(folder / "authority.key")]
    try:
        for command in (
            [
                *new,
                "/CN=tests",
                "-x509",
                "-days",
                "2",
                "-out",
                made.authority,
                "-keyout",
                folder / "authority.key",
            ],
            [*new, f"/CN={name}", "-out", request, "-keyout", made.key],
            [*sign, "-in", request, "-out", made.certificate],
        ):
            subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl makes the certificates: apt-get install openssl")
    return made
