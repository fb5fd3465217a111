"""The readiness probe: every model has a READY worker. `/ping` is healthy even if every worker dies."""

import json
import os
import urllib.request


def missing(port):
    """Return what the management API on this port reports as missing; empty if every model is ready."""
    # Loopback needs no proxy, even if the environment sets one.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(path):
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=4) as answer:
            return json.load(answer)

    try:
        names = [model["modelName"] for model in get("/models")["models"]]
        for name in names:
            for version in get("/models/" + name):
                if not any(worker["status"] == "READY" for worker in version["workers"]):
                    return f"model {name} has no READY worker{pip_error()}"
    except (OSError, ValueError, KeyError) as error:
        # TorchServe does not answer while pip runs, and pip writes a log.
        if pip_log() and not pip_error():
            return "installing the model's requirements"
        return f"TorchServe's management API does not answer: {error}{pip_error()}"
    return "" if names else f"no model is loaded{pip_error()}"


def pip_log():
    """Return the lines of pip's log."""
    try:
        with open(os.environ.get("PIP_LOG", ""), errors="replace") as log:
            return log.readlines()
    except OSError:
        return []


def pip_error():
    """Return pip's last error, or nothing."""
    lines = [line.strip() for line in pip_log() if "ERROR:" in line]
    return "; pip: " + lines[-1] if lines else ""
