"""A real Kubernetes API server on loopback: finds or builds its programs, runs them, and cleans up."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import socket
import ssl
import stat
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import trustme
import urllib3
import yaml

from tests.children import die_with_parent
from tests.stores.installed import installed

HERE = Path(__file__).parent
ADMIN = "admin-of-the-tests"  # the token of a user who has every permission


def programs() -> dict[str, Path]:
    """Return the paths of etcd, kube-apiserver and kube-controller-manager. Raises LookupError."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdeploy-tests" / "kube-1.20.2"
    found = _installed(cache)
    if found is None and platform.system() == "Linux" and shutil.which("apt-get"):
        built = subprocess.run(
            ["bash", HERE / "build-kube.sh", cache], capture_output=True, text=True, check=False
        )
        found = _installed(cache) if built.returncode == 0 else None
    if found is None:
        raise LookupError("kube-apiserver not found; on Debian, `bash tests/cluster/build-kube.sh` builds it")
    return found


def _installed(cache: Path) -> dict[str, Path] | None:
    named = {
        "kube-apiserver": os.environ.get("TEST_ASSET_KUBE_APISERVER"),
        "etcd": os.environ.get("TEST_ASSET_ETCD"),
    }
    folders = [os.environ.get("KUBEBUILDER_ASSETS"), cache / "bin", "/usr/local/kubebuilder/bin"]
    found = {}
    for name in ("etcd", "kube-apiserver", "kube-controller-manager"):
        places = [named.get(name), *(Path(folder) / name for folder in folders if folder), shutil.which(name)]
        path = next((Path(place) for place in places if place and os.access(place, os.X_OK)), None)
        if path:
            found[name] = path
    return found if {"etcd", "kube-apiserver"} <= found.keys() else None


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Kube:
    """etcd and an API server, with token authentication and RBAC, while the `with` lasts."""

    def __init__(self, folder: Path, kserve: str | None = os.environ.get("KSERVE_CRDS")) -> None:
        """`kserve` is a folder with KServe's CRDs; without it, the server has those of tests/cluster/crds."""
        self.folder = folder
        self._kserve = kserve
        self._children: list[subprocess.Popen[bytes]] = []
        authority = trustme.CA()
        served = authority.issue_cert("127.0.0.1", "localhost")
        self.ca = folder / "ca.pem"
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        authority.cert_pem.write_to_path(self.ca)
        served.private_key_pem.write_to_path(self.key)
        for blob in served.cert_chain_pems:
            blob.write_to_path(self.certificate, append=True)
        (folder / "tokens.csv").write_text(
            f'{ADMIN},admin,1,"system:masters"\n' + "".join(f"{u}-token,{u},{u}\n" for u in ("ci", "guest"))
        )
        self.port = 0

    def __enter__(self) -> Kube:
        try:
            self._start(programs())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)

    def _end(self) -> None:
        while self._children:  # the API server first: without its etcd it can hang for minutes
            child = self._children.pop()
            child.kill()
            child.wait()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca))

    def _start(self, found: dict[str, Path]) -> None:
        # The API server loads the CRDs that are in its etcd together. It loads CRDs created later one by one,
        # and rebuilds its OpenAPI document each time, which takes twice as long.
        kept = installed(f"kube-data-{_digest(found, self._kserve)}", partial(self._save_crds, found))
        shutil.copytree(kept / "etcd", self.folder / "etcd")
        self._run(found)
        self._served = json.loads((kept / "served.json").read_text())
        self._wait_for_crds()
        self.collects_garbage = "kube-controller-manager" in found
        if self.collects_garbage:
            self._start_controllers(found["kube-controller-manager"])

    def _save_crds(self, found: dict[str, Path], kept: Path) -> None:
        """Save the data of an etcd that has the CRDs in a folder, with the paths that serve them."""
        self._run(found)
        self._served = []
        for crd in crds(self._kserve):
            spec = crd["spec"]
            self.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
            for version in spec["versions"]:
                self._served.append((f"/apis/{spec['group']}/{version['name']}", spec["names"]["plural"]))
        self._wait_for_crds()
        self._end()
        for spare in self.folder.glob("etcd/member/wal/*.tmp"):
            spare.unlink()
        kept.mkdir()
        shutil.move(self.folder / "etcd", kept)
        (kept / "served.json").write_text(json.dumps(self._served))

    def _run(self, found: dict[str, Path]) -> None:
        client, peer, self.port = free_ports(3)
        etcd = f"http://127.0.0.1:{client}"
        peers = f"http://127.0.0.1:{peer}"
        self._spawn(
            found["etcd"],
            f"--data-dir={self.folder}/etcd",
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",
        )
        self._api_server = (
            found["kube-apiserver"],
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            "--service-cluster-ip-range=10.0.0.0/24",
            f"--client-ca-file={self.ca}",
            f"--tls-cert-file={self.certificate}",
            f"--tls-private-key-file={self.key}",
            f"--token-auth-file={self.folder}/tokens.csv",
            f"--service-account-key-file={self.key}",
            f"--service-account-signing-key-file={self.key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--endpoint-reconciler-type=none",
            "--allow-privileged=true",
            f"--cert-dir={self.folder}/certs",
            # This plugin rejects every pod until a controller has created the default account.
            "--disable-admission-plugins=ServiceAccount",
        )
        self._spawn(*self._api_server)
        self._wait()

    def restart(self) -> None:
        """Kill the API server, and start it again with the data of its etcd."""
        old = self._children[1]
        old.kill()
        old.wait()
        self._spawn(*self._api_server)
        self._children[1] = self._children.pop()
        self._wait()
        self._wait_for_crds()

    def _start_controllers(self, program: Path) -> None:
        config = self.folder / "controllers.kubeconfig"
        config.write_text(yaml.safe_dump(self.kubeconfig(ADMIN)))
        self._spawn(
            program,
            f"--kubeconfig={config}",
            "--controllers=garbagecollector,namespace",
            "--leader-elect=false",
            "--port=0",  # its HTTP port would listen on every interface
            "--secure-port=0",
        )

    def _spawn(self, program: Path, *flags: str) -> None:
        log = (self.folder / f"{program.name}.log").open("ab")
        child = subprocess.Popen(
            [program, *flags],
            env={
                **os.environ,
                "GOGC": "200",
            },  # half the work of the garbage collector for a third more memory
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
        )
        log.close()
        self._children.append(child)

    def _wait(self) -> None:
        self.admin = urllib3.PoolManager(
            ssl_context=self.tls(), headers={"Authorization": f"Bearer {ADMIN}"}, retries=False, maxsize=8
        )
        self._until(
            "the API server is not ready",
            lambda: self.admin.request("GET", f"{self.url}/readyz").data == b"ok",
        )

    def _wait_for_crds(self) -> None:
        """Wait until clients can discover the CRDs: their paths answer before they are Established."""

        def found(path: str, plural: str) -> bool:
            status, answer = self.request("GET", path)
            return status == 200 and plural in (one["name"] for one in answer["resources"])

        self._until("the CRDs are not served", lambda: all(found(*one) for one in self._served))

    def _until(self, what: str, test: Any, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for child in self._children:
                if child.poll() is not None:
                    raise RuntimeError(f"a process of the API server ended; see the logs in {self.folder}")
            try:
                if test():
                    return
            except urllib3.exceptions.HTTPError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"{what} after {seconds:g} s; see the logs in {self.folder}")

    def request(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": content_type}
        answer = self.admin.request(
            method, self.url + path, json=body if body is not None else None, headers=headers
        )
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        return answer.status, answer.json() if is_json else {"message": answer.data.decode()}

    def get(self, path: str) -> Any:
        return self._good("GET", path)

    def create(self, path: str, body: object) -> Any:
        return self._good("POST", path, body)

    def replace(self, path: str, body: object) -> Any:
        return self._good("PUT", path, body)

    def merge(self, path: str, body: object) -> Any:
        return self._good("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path: str) -> Any:
        return self._good("DELETE", path)

    def _good(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> Any:
        status, answer = self.request(method, path, body, content_type)
        assert status < 300, f"{method} {path}: {status} {answer.get('message')}"
        return answer

    def kubeconfig(self, token: str, *, server: str | None = None, namespace: str = "default") -> Any:
        """Return a kubeconfig with one context, `test`, for the user of a token."""
        cluster = {"server": server or self.url, "certificate-authority": str(self.ca)}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
            ],
            "current-context": "test",
        }


def crds(kserve: str | None) -> list[Any]:
    """Return the CRDs to install: those of KServe's folder, if given, replace those of the tests."""
    found = {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in _files(kserve):
        for document in yaml.load_all(path.read_text("utf-8"), Loader=loader):
            if document and document["kind"] == "CustomResourceDefinition":
                found[document["metadata"]["name"]] = document
    return list(found.values())


def _files(kserve: str | None) -> list[Path]:
    folders = [HERE / "crds", *([HERE.parents[1] / kserve] if kserve else [])]
    return [path for folder in folders for path in sorted(folder.glob("*.yaml"))]


def _digest(found: dict[str, Path], kserve: str | None) -> str:
    """Return a digest of the CRDs and of the programs that store them."""
    digest = hashlib.sha256()
    for name in ("etcd", "kube-apiserver"):
        digest.update(f"{found[name].resolve()} {found[name].stat()[stat.ST_MTIME]}".encode())
    for path in _files(kserve):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
