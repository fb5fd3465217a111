"""Azurite, Microsoft's emulator of Azure's blob storage, on a free port of loopback, with or without TLS."""

from __future__ import annotations

import base64
import hmac
import socket
import subprocess
import threading
import time
import warnings
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlencode

import urllib3

from tests.children import die_with_parent
from tests.stores.installed import AZURITE, package
from tests.stores.swift import free_ports

ACCOUNT = "devstoreaccount1"
HOST = f"{ACCOUNT}.blob.core.windows.net"
# Microsoft publishes this key: every Azurite has it.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Azurite:
    """One Azurite process with its folder. It ends with this process, also if that is killed."""

    def __init__(self, root: Path, certificate: tuple[Path, Path] | None = None) -> None:
        self.root = root
        self.certificate = certificate
        self.package = package(*AZURITE)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def start(self) -> Azurite:
        (self.port,) = free_ports(1)
        program = self.package / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
        command = ["node", str(program), "--skipApiVersionCheck", "--disableTelemetry"]
        command += ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", str(self.root)]
        if self.certificate:
            command += ["--cert", str(self.certificate[0]), "--key", str(self.certificate[1])]
        with (self.root / "access.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.DEVNULL, preexec_fn=die_with_parent
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return self
        raise RuntimeError("Azurite did not start")

    def make_container(self, name: str) -> None:
        """Create a container with one request, signed with the shared key."""
        date = formatdate(usegmt=True)
        headers = f"x-ms-date:{date}\nx-ms-version:2021-08-06"
        resource = f"/{ACCOUNT}/{name}" if self.certificate else f"/{ACCOUNT}/{ACCOUNT}/{name}"
        text = "PUT\n" + "\n" * 11 + f"{headers}\n{resource}\nrestype:container"
        signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), "sha256")).decode()
        base = f"https://127.0.0.1:{self.port}" if self.certificate else self.url
        lines = [*headers.split("\n"), f"Authorization:SharedKey {ACCOUNT}:{signature}"]
        lines += [f"Host:{HOST}"] if self.certificate else []
        with urllib3.PoolManager(cert_reqs="CERT_NONE") as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = pool.request(
                "PUT",
                f"{base}/{name}?restype=container",
                headers=dict(line.split(":", 1) for line in lines),
            )
        assert answer.status == 201, answer.data

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def sas() -> str:
    """Return a SAS token of the account with all permissions for a day."""
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86400))
    fields = {"sp": "rwdlac", "ss": "b", "srt": "sco", "st": "", "se": end, "sip": "", "spr": "http,https"}
    text = "\n".join([ACCOUNT, *fields.values(), "2021-08-06", "", ""])
    digest = hmac.digest(base64.b64decode(KEY), text.encode(), "sha256")
    given = {name: value for name, value in fields.items() if value}
    return urlencode({"sv": "2021-08-06", **given, "sig": base64.b64encode(digest).decode()})


class Tunnel:
    """A CONNECT proxy that connects one real host name to a port of loopback, and refuses all others."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (f"{host}:443", port)
        self.heads: list[bytes] = []  # of the CONNECT requests
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        head = b""
        with client:
            while b"\r\n\r\n" not in head:
                more = client.recv(4096)
                if not more:
                    return
                head += more
            self.heads.append(head)
            if head.split()[:2] != [b"CONNECT", self._target[0].encode()]:
                client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self._target[1])) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return
