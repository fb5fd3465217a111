"""The adapter between TorchServe and a model's own handler, packed into every model archive.

TorchServe passes on the requests of a batch as they arrived. The adapter reads them (kdeploy_protocols.py),
calls the model's handler once for all their rows (kdeploy_batching.py), and gives every request its own
answer in its own protocol, within TorchServe's limits (kdeploy_limits.py).

A failure belongs to its own request: 400 for invalid V1 or V2, the code of a `PredictionException`, 507 for
a row that alone runs out of memory, else 500, as `{"error": sentence, "row": index}`.
"""

import importlib
import inspect
import json
import logging
import time
from pathlib import Path

from kdeploy_batching import STREAMING, Batcher
from kdeploy_limits import DEFAULTS, GuardedSocket, UnsendableError, check_head, check_size, read_limits
from kdeploy_protocols import read_request, write_json, write_value

SETTINGS = "kdeploy_handler.json"

logger = logging.getLogger(__name__)


class Adapter:
    """Answers whole batches by one handler, `entry(data, context)`."""

    def __init__(self, entry, limits=DEFAULTS, clock=time.monotonic):
        self.limits = limits
        self.batcher = Batcher(entry, limits.response_timeout, clock)

    def answer(self, data, context):
        """Answer every request of a batch: a list as long as `data`."""
        if inspect.iscoroutinefunction(self.batcher.entry):
            return self.batcher.entry(data, context)  # TorchServe awaits it, and never batches
        context.cl_socket = GuardedSocket(context.cl_socket, self.limits.response_size)
        requests = [read_request(index, row, context) for index, row in enumerate(data)]
        self.batcher.ask([request for request in requests if request.rows], context)
        return [self._write(request, context) for request in requests]

    def _write(self, request, context):
        """Write a request's answer and status here, so that what cannot be sent fails this request alone."""
        if not request.failure:
            try:
                return self._write_values(request, context)
            except UnsendableError as error:
                logger.warning("An answer cannot be sent: %s", error)
                request.failure = 500, {"error": str(error)}
            except Exception as error:
                logger.warning("An answer cannot be written as JSON", exc_info=True)
                request.failure = 500, {"error": f"the handler's answer cannot be written as JSON: {error}"}
        return self._write_failure(request, context)

    def _write_values(self, request, context):
        check_head(context, request.index)
        if request.write:
            answer = request.write(request.values).encode()
            context.set_response_content_type(request.index, "application/json")
        else:
            answer = write_value(request.values[0])
        check_size(len(answer), self.limits.response_size)
        # Stopping criteria want the value itself.
        wants_value = getattr(context, "stopping_criteria", None) and not request.write
        return request.values[0] if wants_value else answer

    def _write_failure(self, request, context):
        status, body = request.failure
        headers = context.get_response_headers(request.index)
        for name in set(headers) - {STREAMING}:  # they described another answer
            del headers[name]
        context.set_response_status(status, "", request.index)
        context.set_response_content_type(request.index, "application/json")
        answer = write_json(body).encode()
        try:
            check_size(len(answer), self.limits.response_size)
        except UnsendableError as error:
            answer = write_json({**body, "error": str(error)}).encode()
        return answer[: self.limits.response_size]


def load_handler(context):
    """Import and initialise `file.py`, `file.py:function` or one of TorchServe's own; return its entry."""
    model_dir = Path(context.system_properties["model_dir"])
    handler = json.loads((model_dir / SETTINGS).read_text(encoding="utf-8"))["handler"]
    context.manifest["model"]["handler"] = handler
    name, _, function = handler.partition(":")
    stem = Path(name.removesuffix(".py")).name
    own = name.endswith(".py") or (model_dir / f"{stem}.py").is_file()
    module = importlib.import_module(stem if own else f"ts.torch_handler.{stem}")
    if function or hasattr(module, "handle"):
        entry = getattr(module, function or "handle")
        entry(None, context)
        return entry
    classes = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if hasattr(kind, "handle")]
    classes = [kind for kind in classes if kind.__module__ == module.__name__]
    if len(classes) != 1:
        raise ValueError(f"{handler} needs one class with a method handle, or a function, and has {classes}")
    service = classes[0]()
    entry = service.handle
    service.initialize(context)
    return entry


_adapter = None


def handle(data, context):
    """Be TorchServe's entry point: without data, which comes once and first, load; else answer a batch."""
    global _adapter  # noqa: PLW0603
    if data is None:  # what goes wrong there is raised as it is: the worker fails, its log has the reason
        _adapter = Adapter(load_handler(context), read_limits(context))
        return None
    return _adapter.answer(data, context)
