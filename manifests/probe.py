"""Readiness: every model has a READY worker. Says on one line what is missing when not."""

import json
import urllib.request

LOG = "/tmp/kdeploy-pip.log"


def get(path):
    """Ask the management API."""
    with urllib.request.urlopen("http://127.0.0.1:8081" + path, timeout=4) as answer:
        return json.load(answer)


def pip_error():
    """Return pip's last complaint, or nothing."""
    try:
        with open(LOG, errors="replace") as log:
            lines = [line.strip() for line in log if "ERROR:" in line]
    except OSError:
        return ""
    return "; pip: " + lines[-1] if lines else ""


try:
    names = [model["modelName"] for model in get("/models")["models"]]
    for name in names:
        for version in get("/models/" + name):
            if not any(worker["status"] == "READY" for worker in version["workers"]):
                raise SystemExit("model " + name + " has no READY worker" + pip_error())
    if not names:
        raise SystemExit("no model is loaded" + pip_error())
except OSError as error:
    raise SystemExit("TorchServe's management API does not answer: " + str(error) + pip_error()) from error
