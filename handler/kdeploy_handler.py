"""The adapter between TorchServe and the user's handler. kdeploy packs it into every model archive.

TorchServe passes the requests of a batch unchanged. The adapter reads them (kdeploy_protocols.py), calls the
user's handler once for all their rows (kdeploy_batching.py), and answers every request in its own protocol,
within TorchServe's limits (kdeploy_limits.py).

An error fails only its own request, as `{"error": message, "row": index}` with the status 400 for invalid V1
or V2, the code of a `PredictionException`, 507 for a row that runs out of memory on its own, else 500.
"""

import importlib
import inspect
import json
import logging
import time
from pathlib import Path

from kdeploy_batching import Batcher
from kdeploy_limits import DEFAULTS, UnsendableError, check_head, check_size, read_limits
from kdeploy_protocols import JSON, Settings, read_request
from kdeploy_readings import Readings, sources_of
from kdeploy_streams import STREAMING, WorkerSocket, end_continuous_batching
from kdeploy_values import write_json, write_value
from kdeploy_warm_up import warm_up

SETTINGS = "kdeploy_handler.json"
DEFAULT_SETTINGS = Settings()

_NO_DATA = "TorchServe first calls a function with data=None: load the model and return None then"
_NO_STREAM = "V1 and V2 cannot be streamed with continuous batching: send the request to /predictions/NAME"

logger = logging.getLogger(__name__)


class Adapter:
    """Answers whole batches with one handler, `entry(data, context)`."""

    def __init__(self, entry, settings=DEFAULT_SETTINGS, limits=DEFAULTS, sources=(), clock=time.monotonic):
        self.settings = settings
        self.limits = limits
        self.batcher = Batcher(entry, limits.response_timeout, clock)
        self.readings = Readings(self.batcher, sources)

    def answer(self, data, context):
        """Answer every request of a batch. Returns a list as long as `data`."""
        if inspect.iscoroutinefunction(self.batcher.entry):
            return self.batcher.entry(data, context)  # TorchServe awaits it, and does not batch
        context.cl_socket = WorkerSocket(context.cl_socket, self.limits.response_size)
        requests = [read_request(index, row, context, self.settings) for index, row in enumerate(data)]
        return [self._write(request, context) for request in self.readings.answer(requests, context)]

    def _write(self, request, context):
        """Return a request's answer as bytes. An answer that cannot be sent fails only this request."""
        if request.write and not request.failure and getattr(context, "stopping_criteria", None):
            request.failure = 501, {"error": _NO_STREAM}
        if not request.failure:
            try:
                return self._write_values(request, context)
            except UnsendableError as error:
                logger.warning("Cannot send an answer: %s", error)
                request.failure = 500, {"error": str(error)}
            except Exception as error:
                logger.warning("Cannot write an answer as JSON", exc_info=True)
                request.failure = 500, {"error": f"cannot write the handler's answer as JSON: {error}"}
        return self._write_failure(request, context)

    def _write_values(self, request, context):
        check_head(context, request.index)
        answer = request.write(request.values) if request.write else write_value(request.values[0])
        check_size(len(answer), self.limits.response_size)
        # TorchServe's stopping criteria need the value itself.
        return request.values[0] if getattr(context, "stopping_criteria", None) else answer

    def _write_failure(self, request, context):
        status, body = request.failure
        end_continuous_batching(context, request.index)
        headers = context.get_response_headers(request.index)
        for name in set(headers) - {STREAMING}:  # they belong to the handler's answer
            del headers[name]
        context.set_response_status(status, "", request.index)
        context.set_response_content_type(request.index, JSON)
        answer = write_json(body).encode()
        try:
            check_size(len(answer), self.limits.response_size)
        except UnsendableError as error:
            answer = write_json({**body, "error": str(error)}).encode()
        return answer[: self.limits.response_size]


def load_handler(context, handler):
    """Import and initialize `file.py`, `file.py:function` or a TorchServe handler; return its entry."""
    model_dir = Path(context.system_properties["model_dir"])
    context.manifest["model"]["handler"] = handler
    name, _, function = handler.partition(":")
    stem = Path(name.removesuffix(".py")).name
    is_file = name.endswith(".py") or (model_dir / f"{stem}.py").is_file()
    module = importlib.import_module(stem if is_file else f"ts.torch_handler.{stem}")
    if function or hasattr(module, "handle"):
        entry = getattr(module, function or "handle")
        _initialize(entry, context)
        return entry
    classes = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if hasattr(kind, "handle")]
    classes = [kind for kind in classes if kind.__module__ == module.__name__]
    if len(classes) != 1:
        raise ValueError(f"{handler} needs a function, or one class with a method handle; it has {classes}")
    service = classes[0]()
    entry = service.handle
    service.initialize(context)
    return entry


def _initialize(entry, context):
    """Make the first call of a function. An error that its missing data can explain says so."""
    try:
        entry(None, context)
    except (TypeError, AttributeError) as error:
        if "NoneType" in str(error):
            error.args = (f"{error}; {_NO_DATA}",)
        raise


def load_adapter(context):
    """Load the handler that the archive names, and return the adapter for it."""
    model_dir = Path(context.system_properties["model_dir"])
    settings = json.loads((model_dir / SETTINGS).read_text(encoding="utf-8"))
    entry = load_handler(context, settings.pop("handler"))
    return Adapter(entry, Settings(**settings), read_limits(context), sources_of(model_dir))


_adapter = None


def handle(data, context):
    """Load the handler on the first call, which has no data; answer a batch on later ones.

    TorchServe's entry point. An error while loading passes through: the worker fails, and its log has the
    reason.
    """
    global _adapter  # noqa: PLW0603
    if data is None:
        _adapter = load_adapter(context)
        warm_up(_adapter.answer, context)
        return None
    return _adapter.answer(data, context)
