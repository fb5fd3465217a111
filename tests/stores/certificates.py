"""A certificate for a host name, signed by a new CA, in the form that rustls accepts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import trustme


class Certificates(NamedTuple):
    """The PEM files of the CA, of the server's certificate, and of its key."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path, name: str) -> Certificates:
    made = Certificates(folder / "authority.pem", folder / "server.pem", folder / "server.key")
    authority = trustme.CA()
    leaf = authority.issue_cert(name, common_name=name)
    authority.cert_pem.write_to_path(made.authority)
    made.certificate.write_bytes(leaf.cert_chain_pems[0].bytes())
    leaf.private_key_pem.write_to_path(made.key)
    return made
