"""Runs `kdeploy` in this process against a simulated controller, and checks how the command ended."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import urllib3

from deployer import errors
from deployer.cli.main import INTERRUPTED, main
from deployer.observed import RELEASE_LABEL
from tests.cluster.kube import ADMIN, Kube
from tests.cluster.play import Play
from tests.stores.swift import KEY, SECRET

SERVICES = "/apis/serving.kserve.io/v1beta1/inferenceservices"
S3_KEYS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}
FORESEEN = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")} - {1}
_namespaces, _revisions = itertools.count(1), itertools.count(2)


class Controller:
    """Simulates KServe's controller while the `with` lasts: the release of every service becomes ready."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._serving: dict[str, str] = {}
        self._pool = urllib3.PoolManager(ssl_context=kube.tls(), retries=False)

    def __enter__(self) -> Controller:
        version = self._kube.get(SERVICES)["metadata"]["resourceVersion"]
        self._watch = self._pool.request(
            "GET",
            f"{self._kube.url}{SERVICES}?watch=true&resourceVersion={version}",
            headers={"Authorization": f"Bearer {ADMIN}"},
            preload_content=False,
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.shutdown()
        self._thread.join()
        self._pool.clear()

    def _run(self) -> None:
        rest = b""
        with contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
            for chunk in self._watch.stream(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._see(json.loads(line))

    def _see(self, event: Any) -> None:
        metadata = event["object"]["metadata"]
        release = metadata.get("labels", {}).get(RELEASE_LABEL)
        if event["type"] == "DELETED":
            self._serving.pop(metadata["uid"], None)
        elif release and self._serving.get(metadata["uid"]) != release:
            before = self._serving.get(metadata["uid"])
            self._serving[metadata["uid"]] = release
            self._serve(Play(self._kube, metadata["namespace"], metadata["name"]), release, before)

    def _serve(self, play: Play, release: str, before: str | None) -> None:
        with contextlib.suppress(AssertionError):  # it has been deleted
            play.replica_set(release, available=1, number=next(_revisions))
            if before:
                play.replica_set(before, available=0, replicas=0)
            play.ready()


class Ended:
    """A command's exit code, output and duration."""

    def __init__(self, code: int, out: str, err: str, seconds: float) -> None:
        self.code, self.out, self.err, self.seconds = code, out, err, seconds

    def fault(self) -> str | None:
        """Return why this end is wrong: neither success nor exactly one clear error."""
        if "Traceback" in self.err or "is a bug" in self.err:
            return "an unexpected error"
        if ADMIN in self.out + self.err or SECRET in self.out + self.err:
            return "a secret in the output"
        if self.code == 0:
            return "an error with exit code 0" if "error:" in self.err else None
        if self.code not in FORESEEN:
            return f"exit code {self.code} belongs to no error"
        counts = {
            word: len(re.findall(rf"^{word}:", self.err, re.MULTILINE)) for word in ("error", "where", "hint")
        }
        if self.code == errors.DoctorError.exit_code:
            counts.pop("where")
        return None if set(counts.values()) == {1} else f"expected one error, where and hint: {counts}"


def kdeploy(*arguments: str) -> Ended:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    began, code = time.monotonic(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
    assert code != INTERRUPTED
    return Ended(code, out.getvalue(), err.getvalue(), time.monotonic() - began)


def new_namespace(kube: Kube) -> str:
    name = f"faults-{next(_namespaces)}"
    kube.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


SERVICES_OF = "/apis/serving.kserve.io/v1beta1/namespaces/{}/inferenceservices"
_KINDS = {
    "InferenceService": SERVICES_OF,
    "ServingRuntime": "/apis/serving.kserve.io/v1alpha1/namespaces/{}/servingruntimes",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
}


def objects(kube: Kube, namespace: str) -> dict[str, Any]:
    """Return every object of a namespace that kdeploy can write, by kind and name."""
    found = {}
    for kind, path in _KINDS.items():
        for one in kube.get(path.format(namespace))["items"]:
            found[f"{kind}/{one['metadata']['name']}"] = one
    return found


def wrong(kube: Kube, namespace: str, release: str, clean: set[str]) -> str | None:
    """Return the first difference from the result of an undisturbed rollout."""
    found = objects(kube, namespace)
    if set(found) != clean:
        return f"objects {sorted(found)}, expected {sorted(clean)}"
    service = found["InferenceService/digits"]
    if service["metadata"]["labels"][RELEASE_LABEL] != release:
        return f"release {service['metadata']['labels'][RELEASE_LABEL]} is applied, expected {release}"
    uri = service["spec"]["predictor"]["model"]["storageUri"]
    if not uri.endswith(f"/{release}/"):
        return f"{uri} is served, expected {release}"
    for name, one in found.items():
        owners = [owner["uid"] for owner in one["metadata"].get("ownerReferences", [])]
        if one is not service and owners != [service["metadata"]["uid"]]:
            return f"{name} is owned by {owners}"
    return None


def steps(requests: list[tuple[str, str]]) -> Iterator[tuple[str, int]]:
    """Yield each request of a command as a pattern, with the number of equal requests before it.

    Of more than four equal requests, only the first and the last.
    """
    uid = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    named = [re.sub(uid, "UID", f"{method} {path}") for method, path in requests]
    patterns = [re.sub(r"\d+", r"\\d+", re.escape(one)).replace("UID", "[-0-9a-f]{36}") for one in named]
    for pattern, count in Counter(patterns).items():
        yield from ((f"^{pattern}$", n) for n in (range(count) if count <= 4 else (0, count - 1)))


def shown(step: tuple[str, int]) -> str:
    """Return a step as text for a message."""
    pattern, before = step
    text = re.sub(r"\\(.)", r"\1", pattern.strip("^$").replace(r"\d+", "N"))
    return f"`{text}`" + (f", number {before + 1}" if before else "")
