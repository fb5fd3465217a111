"""KServe's own downloader, with the environment that its controller derives from our documents."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from deployer.observed import Document

_ANNOTATION = "serving.kserve.io/s3-"
_DOWNLOAD = "import sys; from kserve_storage import Storage; Storage.download(sys.argv[1], sys.argv[2])"


def container_environment(documents: Sequence[Document]) -> dict[str, str]:
    """Return the environment that KServe's controller gives a service's storage-initializer.

    The controller reads the InferenceService, its ServiceAccount and the Secrets that this lists: their data
    by the keys that KServe knows, and the annotations with the address of S3.
    """
    by_kind = {document["kind"]: document for document in documents}
    account, secret = by_kind["ServiceAccount"], by_kind["Secret"]
    name = by_kind["InferenceService"]["spec"]["predictor"]["serviceAccountName"]
    assert name == account["metadata"]["name"]
    assert account["secrets"] == [{"name": secret["metadata"]["name"]}]
    data = {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
    annotations = secret["metadata"].get("annotations", {})
    found = {
        key.removeprefix(_ANNOTATION): value
        for key, value in annotations.items()
        if key.startswith(_ANNOTATION)
    }
    if "endpoint" in found:
        scheme = "http" if found["usehttps"] == "0" else "https"
        data |= {"S3_ENDPOINT": found["endpoint"], "AWS_ENDPOINT_URL": f"{scheme}://{found['endpoint']}"}
        data |= {"S3_USE_HTTPS": found["usehttps"], "S3_VERIFY_SSL": found["verifyssl"]}
        data |= {"AWS_DEFAULT_REGION": found["region"]}
    return data


def download(python: Path, uri: str, place: Path, variables: Mapping[str, str]) -> dict[str, bytes]:
    """Download a storage URI with the downloader in a Python's environment; return the files."""
    done = subprocess.run(
        [python, "-c", _DOWNLOAD, uri, str(place)],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The downloader links the content of a folder.
    files = (path for top in place.iterdir() for path in ([top] if top.is_file() else top.rglob("*")))
    return {str(path.relative_to(place)): path.read_bytes() for path in files if path.is_file()}
