"""OpenStack Swift with its S3 API, on free ports of loopback: it checks signatures and digests."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import textwrap
import time
from pathlib import Path
from typing import Any

import boto3

from tests.children import die_with_parent
from tests.stores.installed import SWIFT, environment

KEY, SECRET = "test:tester", "planted+5f2c9d/secret"
_KINDS = ("account", "container", "object")
_RINGS = """
import sys
from swift.common.ring import RingBuilder
for place, port in zip(sys.argv[1::2], sys.argv[2::2]):
    ring = RingBuilder(2, 1, 0)
    device = dict(region=1, zone=1, ip="127.0.0.1", port=int(port), device="d1", weight=1)
    ring.add_dev(device | dict(replication_ip="127.0.0.1", replication_port=int(port)))
    ring.rebalance()
    ring.get_ring().save(place)
"""
_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper proxy-logging listing_formats bulk s3api tempauth slo dlo copy proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
object_chunk_size = 1048576
client_chunk_size = 1048576
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = planted+5f2c9d/secret .admin
[filter:s3api]
use = egg:swift#s3api
s3_acl = no
location = us-east-1
min_segment_size = 5242880
[filter:proxy-logging]
use = egg:swift#proxy_logging
"""
_FILTERS = ("catch_errors", "gatekeeper", "listing_formats", "bulk", "slo", "dlo", "copy")


class Swift:
    """Four Swift processes with their folder. They end with this process, also if that is killed."""

    def __init__(self, root: Path, certificate: tuple[Path, Path] | None = None) -> None:
        self.root = root
        self.certificate = certificate
        self.python = environment(*SWIFT)
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    def client(self, authority: Path | None = None) -> Any:
        """Return AWS's client, for operations that kdeploy does not have."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            verify=str(authority) if authority else None,
        )

    def make_bucket(self, name: str, authority: Path | None = None) -> None:
        self.client(authority).create_bucket(Bucket=name)

    def start(self) -> Swift:
        for _ in range(3):  # another process can take a free port first
            if self._try():
                return self
            self.stop()
        logs = "".join(path.read_text("utf-8", "replace")[-800:] for path in self.root.glob("*.log"))
        raise RuntimeError(f"Swift did not start:\n{logs}")

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(10)
        self.processes = []

    def _try(self) -> bool:
        etc = self.root / "etc"
        etc.mkdir(exist_ok=True)
        (self.root / "srv" / "d1").mkdir(parents=True, exist_ok=True)
        self.port, *ports = free_ports(4)
        (etc / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = p\nswift_hash_path_suffix = s\n"
            "[storage-policy:0]\nname = one\ndefault = yes\n"
        )
        filters = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in _FILTERS)
        tls = "cert_file = {}\nkey_file = {}\n".format(*self.certificate) if self.certificate else ""
        (etc / "proxy.conf").write_text(self._default(self.port, "INFO") + tls + _PROXY + filters)
        rings = [
            str(word)
            for kind, port in zip(_KINDS, ports, strict=True)
            for word in (etc / f"{kind}.ring.gz", port)
        ]
        for kind, port in zip(_KINDS, ports, strict=True):
            # No daemon updates the listings later, so each update gets a long time limit.
            app = f"[app:{kind}-server]\nuse = egg:swift#{kind}\n"
            if kind == "object":
                app += "container_update_timeout = 20\nmb_per_sync = 0\nnetwork_chunk_size = 1048576\n"
            pipeline = f"[pipeline:main]\npipeline = {kind}-server\n"
            (etc / f"{kind}.conf").write_text(self._default(port, "WARNING") + pipeline + app)
        child = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([self.python, "-W", "ignore", "-c", _RINGS, *rings], check=True, env=child)
        for kind in (*_KINDS, "proxy"):
            program = self.python.with_name(f"swift-{kind}-server")
            with (self.root / f"{kind}.log").open("wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        [self.python, "-W", "ignore", program, etc / f"{kind}.conf", "-v"],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=child,
                        cwd=self.root,
                        preexec_fn=die_with_parent,
                    )
                )
        return all(self._answers(port) for port in ports) and self._answers(self.port)

    def _default(self, port: int, level: str) -> str:
        return textwrap.dedent(f"""\
            [DEFAULT]
            bind_ip = 127.0.0.1
            bind_port = {port}
            workers = 0
            user = {getpass.getuser()}
            swift_dir = {self.root}/etc
            devices = {self.root}/srv
            mount_check = false
            disable_fallocate = true
            fallocate_reserve = 0
            log_level = {level}
            log_address = {self.root}/nolog
            """)

    def _answers(self, port: int) -> bool:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and all(process.poll() is None for process in self.processes):
            try:
                socket.create_connection(("127.0.0.1", port), 5).close()
            except OSError:
                time.sleep(0.05)
            else:
                return True
        return False


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
