"""V1 requests by 16 clients: kdeploy's handler adapter beside TorchServe's own `kserve` envelope.

The same handler, which costs 10 ms a call however many rows it gets, as most models on a GPU do. Every way is
a real TorchServe of one worker on this machine; they take turns, and the median counts. Ends with 1 where the
adapter answers any request with an error, or fewer requests a second than the envelope at its best.

usage: python bench/batching.py [--requests 2000] [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import urllib3
from deployer.pipeline import Pipeline

from deployer.config import Store, load_settings
from deployer.observed import RELEASE_LABEL, Document, Reference
from deployer.release import Traffic
from deployer.rollout import watch_rollout
from deployer.store.open import open_store
from deployer.targets.local import OneNode

CLIENTS = 16
HANDLER = """
import time


def handle(data, context):
    if data is None:
        return None
    time.sleep(0.01)
    return [row["data"] for row in data]
"""


def kdeploys(folder: Path, target: OneNode, name: str, batch_size: int) -> list[Document]:
    """Return the documents of a release that kdeploy made, stored in `folder`."""
    flags = {
        "model.name": name,
        "model.version": "1.0",
        "model.handler": "handler.py",
        "serving.batch-size": str(batch_size),
        "serving.max-batch-delay": "5",
    }
    settings = load_settings(None, environment={}, flags=flags, folder=folder)
    pipeline = Pipeline(settings, open_store(Store(uri="store"), folder), target, lambda _: None)
    return pipeline.render(pipeline.push(), Traffic())


def envelopes(folder: Path, target: OneNode, name: str, batch_size: int) -> list[Document]:
    """Return the same with an archive of torch-model-archiver's and the envelope on."""
    documents = kdeploys(folder, target, name, batch_size)
    model = documents[1]["spec"]["predictor"]["model"]
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
    return documents


def load(target: OneNode, name: str, requests: int) -> tuple[float, int]:
    """Send requests by 16 clients; return answered requests a second, and how many were not answered."""
    url = f"{target.direct(Reference('default', name)).url}/v1/models/{name}:predict"
    pool = urllib3.PoolManager(maxsize=CLIENTS, headers={"Content-Type": "application/json"})

    def ask(number: int) -> bool:
        body = json.dumps({"instances": [{"data": number}]})
        answer = pool.request("POST", url, body=body, retries=False)
        return answer.status == 200 and answer.json() == {"predictions": [number]}

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
        target = OneNode(
            state=folder / "state", namespace="default", ingress_host="127.0.0.1", ingress_port=0
        )
        ways = {
            "adapter, batch 8": kdeploys(folder, target, "adapter", 8),
            "envelope, batch 8": envelopes(folder, target, "envelope8", 8),
            "envelope, batch 1": envelopes(folder, target, "envelope1", 1),
        }
        names = {way: documents[1]["metadata"]["name"] for way, documents in ways.items()}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        errors = dict.fromkeys(ways, 0)
        try:
            for documents in ways.values():
                reference, release = (
                    target.apply(documents),
                    documents[1]["metadata"]["labels"][RELEASE_LABEL],
                )
                list(watch_rollout(target, reference, release, 60))
            for run in range(options.runs + 1):
                for way, name in names.items():
                    rate, wrong = load(target, name, options.requests if run else 200)
                    if run:  # the first is to warm up
                        rates[way].append(rate)
                        errors[way] += wrong
        finally:
            target.stop()
    medians = {way: statistics.median(values) for way, values in rates.items()}
    for way, median in medians.items():
        of = options.requests * options.runs
        print(f"{way:18} {median:7.0f} answers/s   {errors[way]:6} of {of} requests failed")
    best = max(medians["envelope, batch 8"], medians["envelope, batch 1"])
    good = not errors["adapter, batch 8"] and medians["adapter, batch 8"] >= best
    print(f"bars: the adapter fails none and is no slower: {'kept' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
