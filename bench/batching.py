"""Compares kdeploy's handler adapter with TorchServe's `kserve` envelope: V1 requests of 16 clients.

Both have the same handler, which takes 10 ms per call for any number of rows, as most models on a GPU do.
Each runs in a TorchServe with one worker on this machine. They take turns, and the median counts. Exits
with 1 if the adapter fails a request, or answers fewer requests per second than the envelope at its best, or
than 600 (on two quiet cores).

usage: python bench/batching.py [--requests 2000] [--runs 3]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deployer.bundle import Bundle
from deployer.config import Store, load_settings
from deployer.journal import Provenance, plan_entry
from deployer.observed import Reference
from deployer.project import Project
from deployer.rollout.plan import Plan
from deployer.rollout.runner import Runner
from deployer.rollouts import Rollouts
from deployer.store.open import open_store
from deployer.targets.local import OneNode
from deployer.targets.protocols import Target, Via

CLIENTS = 16
BAR = 600  # answers per second
HANDLER = """
import time


def handle(data, context):
    if data is None:
        return None
    time.sleep(0.01)
    return [row["data"] for row in data]
"""


def adapter_bundle(folder: Path, target: Target, name: str, batch_size: int) -> Bundle:
    """Push a release with the adapter to a store in `folder`, and return its bundle."""
    flags = {
        "model.name": name,
        "model.version": "1.0",
        "model.handler": "handler.py",
        "serving.batch-size": str(batch_size),
        "serving.max-batch-delay": "5",
    }
    settings = load_settings(None, environment={}, flags=flags, folder=folder)
    project, store = Project(settings, lambda _: None), open_store(Store(uri="store"), folder)
    release = project.push(store)
    return Rollouts(project, store, target, lambda _: None).decide(release.id, look=False).bundle


def envelope_bundle(folder: Path, target: Target, name: str, batch_size: int) -> Bundle:
    """Return the same bundle with an archive of torch-model-archiver and the envelope."""
    bundle = adapter_bundle(folder, target, name, batch_size)
    model = bundle.service["spec"]["predictor"]["model"]
    release = Path(model["storageUri"].removeprefix("file://"))
    place = folder / name
    (place / "config").mkdir(parents=True)
    (place / "model-store").mkdir()
    properties = (release / "config" / "config.properties").read_text()
    (place / "config" / "config.properties").write_text(properties + "service_envelope=kserve\n")
    build = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", name, "--version", "1.0"]
    build += ["--handler", "handler.py", "--export-path", str(place / "model-store")]
    environment = {**os.environ, "TMPDIR": str(place)}
    subprocess.run(build, cwd=folder, env=environment, check=True, capture_output=True)
    model["storageUri"] = place.as_uri() + "/"
    return bundle


def load(target: Target, name: str, requests: int) -> tuple[float, int]:
    """Send requests from 16 clients. Return correct answers per second, and the number of failed requests."""
    way = target.reach.endpoint(Reference("default", name), Via.DIRECT)
    address, path = way.url.removeprefix("http://"), f"/v1/models/{name}:predict"
    clients = threading.local()  # of http.client: the bench shares its cores with what it measures

    def ask(number: int) -> bool:
        if not hasattr(clients, "own"):
            clients.own = http.client.HTTPConnection(address, timeout=60)
        body = json.dumps({"instances": [{"data": number}]})
        clients.own.request("POST", path, body, {"Content-Type": "application/json"})
        answer = clients.own.getresponse()
        data = answer.read()
        return answer.status == 200 and json.loads(data) == {"predictions": [number]}

    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as threads:
        right = sum(threads.map(ask, range(requests)))
    return right / (time.perf_counter() - started), requests - right


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "handler.py").write_text(HANDLER)
        node = OneNode(state=folder / "state", namespace="default", ingress_host="127.0.0.1", ingress_port=0)
        target = node.target
        runner = Runner(target, lambda _: None, lambda bundle: bundle)
        ways = {
            "adapter, batch 8": adapter_bundle(folder, target, "adapter", 8),
            "envelope, batch 8": envelope_bundle(folder, target, "envelope8", 8),
            "envelope, batch 1": envelope_bundle(folder, target, "envelope1", 1),
        }
        names = {way: bundle.reference.name for way, bundle in ways.items()}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        errors = dict.fromkeys(ways, 0)
        try:
            for bundle in ways.values():
                runner.run(Plan(bundle=bundle, entry=plan_entry(bundle, Provenance()), timeout=60))
            for run in range(options.runs + 1):
                for way, name in names.items():
                    rate, wrong = load(target, name, options.requests)
                    if run:  # the first run warms up
                        rates[way].append(rate)
                        errors[way] += wrong
        finally:
            node.stop()
    medians = {way: statistics.median(values) for way, values in rates.items()}
    for way, median in medians.items():
        count = options.requests * options.runs
        print(f"{way:18} {median:7.0f} answers/s   {errors[way]:6} of {count} requests failed")
    best = max(medians["envelope, batch 8"], medians["envelope, batch 1"], BAR)
    good = not errors["adapter, batch 8"] and medians["adapter, batch 8"] >= best
    bars = f"the adapter fails no request, is not slower, and answers {BAR}/s"
    print(f"bars: {bars}: {'met' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
