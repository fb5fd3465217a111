"""Sends the warm-up samples of the archive to the handler before TorchServe calls the worker ready.

A sample is one request, as `curl -T` sends it: JSON is read as JSON, text as text, anything else as bytes.
Every worker does this, also one that replaces another. If a sample fails, so does the load.
"""

import contextlib
import json
import logging
import mimetypes
import time
from pathlib import Path

from ts.context import RequestProcessor

SAMPLES = "kdeploy_warm_up"  # the folder in the archive

logger = logging.getLogger(__name__)


class WarmUpError(Exception):
    """A warm-up sample failed. The message names it."""


class _Discard:
    """The client of a warm-up request: ignores the pieces of a streamed answer."""

    def sendall(self, data):
        """Ignore data."""

    send = sendall


def warm_up(answer, context):
    """Send each sample of the archive to `answer`, an adapter's. Raises WarmUpError."""
    folder = Path(context.system_properties["model_dir"]) / SAMPLES
    samples = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in samples:
        began = time.monotonic()
        _send(path, answer, context)
        logger.info("Warm-up sample %s took %.0f ms", path.name, (time.monotonic() - began) * 1000)


def _send(path, answer, context):
    kind = mimetypes.guess_type(path.name)[0] or ""
    with _request(path.name, kind, context) as request:
        content = _read(path, kind)
        answers = answer([{"body": content}], context)
        if not isinstance(answers, list):
            answers.close()
            raise WarmUpError(f"cannot send warm-up sample {path.name}: the handler is a coroutine")
        status = request.get_response_status_code()
        if status >= 400:
            raise WarmUpError(f"warm-up sample {path.name} failed: HTTP {status}: {_message(answers[0])}")


def _read(path, kind):
    """Return a sample as TorchServe passes it to a worker. Raises WarmUpError."""
    content = path.read_bytes()
    try:
        if kind == "application/json":
            return json.loads(content)
        if kind.startswith("text/"):
            return content.decode()
    except ValueError as error:
        raise WarmUpError(f"invalid warm-up sample {path.name}: {error}") from error
    return bytearray(content)


@contextlib.contextmanager
def _request(name, kind, context):
    """Let the context be that of one request, and yield the request."""
    request = RequestProcessor({"body": {"content-type": kind}})
    ids = {0: f"warm-up-{name}"}
    context.request_processor, context.cl_socket = [request], _Discard()
    context.request_ids = context.metrics.request_ids = ids
    try:
        yield request
    finally:
        context.request_processor = context.cl_socket = None
        context.request_ids = context.metrics.request_ids = None


def _message(answer):
    """Return the error of an answer in one line."""
    text = answer.decode("utf-8", "replace") if isinstance(answer, (bytes, bytearray)) else str(answer)
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = str(json.loads(text)["error"])
    return " ".join(text.split())[:500]
