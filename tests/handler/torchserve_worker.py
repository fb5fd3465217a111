"""TorchServe's worker around the adapter, without the server, but with its codec, Service and Context."""

import functools
import importlib.util
import io
import json
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import ts
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.protocol.otf_message_handler import retrieve_msg
from ts.service import Service

HANDLER = Path(__file__).parents[2] / "handler"
ADAPTER = sorted(HANDLER.glob("kdeploy_*.py"))
METRICS = Path(ts.__file__).parent / "configs" / "metrics.yaml"
sys.path.insert(0, str(HANDLER))  # as TorchServe adds the folder of the model
MANIFEST = {"model": {"modelName": "archived-name", "modelVersion": "1.5", "handler": "kdeploy_handler.py"}}


def load_adapter():
    """Import the adapter again, without a loaded handler."""
    spec = importlib.util.spec_from_file_location("kdeploy_handler", HANDLER / "kdeploy_handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def worker_metrics():
    """Return TorchServe's metrics, which a worker creates once."""
    metrics = MetricsCacheYamlImpl(config_file_path=str(METRICS))
    metrics.initialize_cache()
    return metrics


@dataclass(frozen=True)
class Ask:
    """A request as TorchServe's frontend passes it: parts of (name, content type, bytes)."""

    parts: tuple
    headers: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    status: int
    content_type: str
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body, parse_constant=_refuse)


def _refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def ask_json(body, **headers):
    return Ask((("body", "application/json", json.dumps(body).encode()),), headers)


def ask_v1(*instances, **headers):
    return ask_json({"instances": list(instances)}, **headers)


def ask_v2(*inputs, **extra):
    return ask_json({"inputs": list(inputs), **extra})


def tensor(data, shape=None, datatype="FP32", name="x"):
    return {
        "name": name,
        "shape": [len(data)] if shape is None else shape,
        "datatype": datatype,
        "data": data,
    }


def ask_raw(body, content_type="", name="body"):
    return Ask(((name, content_type, body),))


class Worker:
    """A loaded model. `predict` takes the requests of a batch and returns their answers."""

    def __init__(self, entry, settings=(), source="", clock=time.monotonic, **limits):
        module = load_adapter()
        settings = module.Settings()._replace(**dict(settings))
        limits = module.DEFAULTS._replace(**limits)
        self.adapter = module.Adapter(entry, settings, limits, [source], clock)
        arguments = ["served-name", "/no-such-folder", MANIFEST, self.adapter.answer, None, 8, True]
        self.service = Service(*arguments, worker_metrics())
        self.service.set_cl_socket(None)

    @property
    def context(self):
        return self.service.context

    def predict(self, *asks):
        code, answers = predict(self.service, *asks)
        assert code == 200
        return answers

    def code(self, *asks):
        """Return the status of the whole batch."""
        return predict(self.service, *asks)[0]


def predict(service, *asks):
    """Send a batch in TorchServe's wire format. Return the status of the batch and the answers."""
    _, batch = retrieve_msg(_Connection(_encode(asks)))
    return _decode(bytes(service.predict(batch)))


class _Connection(io.BytesIO):
    def recv(self, count):
        return self.read(count)


def _framed(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("!i", len(value)) + value


_END = struct.pack("!i", -1)


def _encode(asks):
    """Encode a batch as TorchServe's frontend does."""
    message = b"I"
    for number, ask in enumerate(asks):
        message += _framed(f"request-{number}")
        message += b"".join(_framed(name) + _framed(value) for name, value in ask.headers.items()) + _END
        message += (
            b"".join(_framed(name) + _framed(kind) + _framed(body) for name, kind, body in ask.parts) + _END
        )
    return message + _END


def _decode(message):
    """Decode a message as the frontend does: the batch's code, and an answer per request in order."""
    stream = io.BytesIO(message)

    def integer():
        return struct.unpack("!i", stream.read(4))[0]

    def text():
        return stream.read(integer()).decode()

    code, _ = integer(), text()
    answers = []
    while (length := integer()) != -1:
        assert stream.read(length).decode() == f"request-{len(answers)}"
        content_type, status, _ = text(), integer(), text()
        headers = {text(): text() for _ in range(integer())}
        answers.append(Answer(status, content_type, headers, stream.read(integer())))
    assert stream.read() == b""
    return code, answers
