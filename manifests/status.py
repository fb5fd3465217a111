"""Answers about readiness and metadata, as the V1 and V2 protocols define them.

TorchServe has none of these paths on its inference port, and those of its V2 mode say ready while every
worker dies. Here a model is ready if the management API reports a READY worker, until the server drains.
"""

import asyncio
import importlib.metadata
import re
from urllib.parse import unquote

_MODEL = "/v2/models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+))?"
_PATHS = [
    (kind, re.compile(path))
    for kind, path in (
        ("alive", "/"),
        ("server", "/v2/?"),
        ("live", "/v2/health/live"),
        ("ready", "/v2/health/ready"),
        ("models", "/v[12]/models"),
        ("model_ready", "/v1/models/(?P<name>[^/:]+)"),
        ("model_ready", _MODEL + "/ready"),
        ("model", _MODEL),
    )
]


class Status:
    """The models of a TorchServe, and whether they are ready."""

    def __init__(self, models, look):
        """`models` has a version for each name; `look` returns why a model is not ready, and can block."""
        self._models, self.look = models, look
        self._looking = None

    def find(self, path):
        """Return the question that a request's path asks, in bytes; None if TorchServe answers it."""
        text = path.partition(b"?")[0].decode("latin-1")
        matches = ((kind, form.fullmatch(text)) for kind, form in _PATHS)
        return next(((kind, match.groupdict()) for kind, match in matches if match), None)

    async def answer(self, question, draining=False):
        """Return the HTTP status and the document that answer a question."""
        kind, groups = question
        document = {}
        if "name" in groups:
            name = unquote(groups["name"])
            missing = self._missing(name, groups.get("version"))
            if missing:
                return 404, {"error": missing}
            document = {"name": name}
        if kind in ("ready", "model_ready"):
            reason = "the server is draining" if draining else await self.reason()
            document["ready"] = not reason
            return (503, {**document, "error": reason}) if reason else (200, document)
        return 200, {**document, **self._fixed(kind, document.get("name"))}

    async def reason(self):
        """Return why the models are not ready; empty if they are. Concurrent callers share one look."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().run_in_executor(None, self.look)
        return await asyncio.shield(self._looking)

    def _missing(self, name, version):
        if name not in self._models:
            return f"model {name!r} not found"
        if version and unquote(version) != self._models[name]:
            return f"version {unquote(version)!r} of model {name!r} not found"
        return ""

    def _fixed(self, kind, name):
        """Return the answer to a question that does not depend on the models' state."""
        if kind == "alive":
            return {"status": "alive"}
        if kind == "live":
            return {"live": True}
        if kind == "server":
            return {"name": "torchserve", "version": _server_version(), "extensions": []}
        if kind == "models":
            return {"models": sorted(self._models)}
        return {
            "versions": [self._models[name]],
            "platform": "pytorch_torchserve",
            "inputs": [],
            "outputs": [],
        }


def _server_version():
    try:
        return importlib.metadata.version("torchserve")
    except importlib.metadata.PackageNotFoundError:
        return ""
