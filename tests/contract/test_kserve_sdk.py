"""Rendered documents keep every field when KServe's SDK decodes and encodes them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deployer.config import Scaling, Serving
from deployer.manifest import render
from deployer.observed import Capabilities, Document
from deployer.release import ArchiveRecord, Release, Traffic

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = ("InferenceService", "ServingRuntime")
VARIANTS = (
    Serving(),
    Serving(protocol_version="grpc-v2"),
    Serving(protocol_version="v2", env={"A": "1", "B": 'it\'s "b"'}),
    Serving(gpu=2, cpu="4", memory="16Gi", batch_size=8, max_workers=2, response_timeout=300),
)


def rendered() -> list[Document]:
    """Return the documents of the golden files, and of a few configs in both deployment modes."""
    found = [
        document
        for path in sorted(GOLDEN.glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]
    for serving in VARIANTS:
        for mode in ("Knative", "Standard"):
            release = Release(
                id="1.0-0123456789ab",
                name="digits",
                version="1.0",
                archive=ArchiveRecord("digits.mar", "sha256:0", ()),
                serving=serving,
                config_properties="",
            )
            found += render(
                release,
                storage_uri="s3://models/digits/1.0-0123456789ab/",
                namespace="team",
                capabilities=Capabilities(deployment_mode=mode, canary=mode == "Knative"),
                scaling=Scaling(min_replicas=0, max_replicas=5),
                traffic=Traffic(10 if mode == "Knative" else 100),
            ).documents
    return [document for document in found if document["kind"] in KINDS]


def round_trip(documents: list[Document]) -> list[Document]:
    ended = subprocess.run(
        [sys.executable, Path(__file__).with_name("kserve_sdk.py")],
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    back: list[Document] = json.loads(ended.stdout)
    return back


def lost(sent: Any, back: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every field that was lost or changed; fields that the SDK adds do not count."""
    if isinstance(sent, dict) and isinstance(back, dict):
        for key, value in sent.items():
            yield from lost(value, back.get(key), f"{path}.{key}")
    elif isinstance(sent, list) and isinstance(back, list) and len(sent) == len(back):
        for index, value in enumerate(sent):
            yield from lost(value, back[index], f"{path}[{index}]")
    elif sent != back:
        yield path


def test_the_sdk_keeps_every_field() -> None:
    documents = rendered()
    assert {document["kind"] for document in documents} == set(KINDS)
    unknown = {**documents[0], "spec": {**documents[0]["spec"], "unknownField": {"a": [1]}}}
    *back, pruned = round_trip([*documents, unknown])
    assert list(lost(documents, back)) == []
    assert list(lost(unknown, pruned)) == [".spec.unknownField"]  # the comparison finds a lost field
