"""How people write handlers for plain TorchServe 0.12, each with requests in the forms that it reads.

A handler is a text, because TorchServe loads it from a model archive. None of them knows kdeploy.
"""

import base64
import io
import json

from PIL import Image

from tests.handler.torchserve_worker import Ask, ask_json, ask_raw, tensor

_ROWS = """
def payload(row):
    value = row.get("data") or row.get("body")
    return value.decode("utf-8") if isinstance(value, (bytes, bytearray)) else value
"""

BASE = '''
import json

import torch
from ts.torch_handler.base_handler import BaseHandler

class Doubler(BaseHandler):
    """A subclass of TorchServe's base handler, with a preprocess method."""

    def initialize(self, context):
        self.device = torch.device("cpu")
        self.model = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.constant_(self.model.weight, 2.0)
        self.context = context
        self.initialized = True

    def preprocess(self, data):
        rows = [row.get("data") or row.get("body") for row in data]
        rows = [json.loads(row) if isinstance(row, (bytes, bytearray, str)) else row for row in rows]
        return torch.tensor(rows, dtype=torch.float32)

    def get_insights(self, tensor_data, raw, target):
        return [[float(tensor_data.sum()), str(type(raw).__name__), target]] * len(tensor_data)
'''

FUNCTION = (
    _ROWS
    + """
loaded = []

def handle(data, context):
    if data is None:
        loaded.append(context.manifest["model"]["modelName"])
        return None
    return [{"length": len(payload(row)), "loaded": loaded} for row in data]
"""
)

KEYS = '''
import base64

class CustomHandler:
    """Reads one request per call, by the keys of its body."""

    def initialize(self, context):
        self.initialized = True

    def handle(self, data, context):
        body = data[0]["body"]
        if "data" in body.keys():
            answer = {"bytes": len(base64.b64decode(body["data"]))}
        else:
            answer = {"error": "no data", "keys": sorted(body.keys())}
        context.metrics.add_time("HandlerTime", 1.5, None, "ms")
        return [answer]
'''

INSTANCES = '''
class Halves:
    """Reads V1 itself, for each request of a batch."""

    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [{"predictions": [value / 2 for value in row["body"]["instances"]]} for row in data]
'''

INPUTS = '''
class Sums:
    """Reads V2 itself."""

    def initialize(self, context):
        pass

    def handle(self, data, context):
        answers = []
        for row in data:
            body = row.get("body")
            tensors = body.get("inputs")
            sums = [sum(each["data"]) for each in tensors]
            outputs = [{"name": "sum", "shape": [len(sums)], "datatype": "FP64", "data": sums}]
            answers.append({"id": body.get("id"), "model_name": context.model_name, "outputs": outputs})
        return answers
'''

TURNS = (
    _ROWS
    + '''
import json

class Turns:
    """A JSON body of another API, which also has inputs."""

    def initialize(self, context):
        pass

    def handle(self, data, context):
        bodies = [payload(row) for row in data]
        bodies = [json.loads(body) if isinstance(body, str) else body for body in bodies]
        return [[len(body["inputs"]), body.get("parameters", {}).get("max")] for body in bodies]
'''
)

TEXT = (
    _ROWS
    + '''
class Words:
    """Needs texts that are exactly str."""

    def initialize(self, context):
        pass

    def handle(self, data, context):
        texts = [payload(row) for row in data]
        assert all(type(text) is str for text in texts)
        return [" ".join(reversed(text.split())) for text in texts]
'''
)

FRAMES = '''
class Frames:
    """Several files of one request."""

    def initialize(self, context):
        pass

    def handle(self, data, context):
        return [[(name, len(row[name])) for name in sorted(row)] for row in data]
'''

STREAM = (
    _ROWS
    + '''
from ts.handler_utils.utils import send_intermediate_predict_response

class Talker:
    """Streams its answer."""

    def initialize(self, context):
        pass

    def handle(self, data, context):
        words = [payload(row).split() for row in data]
        for step in range(max(map(len, words)) - 1):
            pieces = [each[step] + " " if step < len(each) - 1 else "" for each in words]
            send_intermediate_predict_response(pieces, context.request_ids, "ok", 200, context)
        return [each[-1] for each in words]
'''
)

PICTURE = '''
import base64
import io

from PIL import Image

class Thumbnails:
    """Takes pictures as bytes or base64, answers with bytes."""

    def initialize(self, context):
        pass

    def handle(self, data, context):
        answers = []
        for index, row in enumerate(data):
            image = row.get("data") or row.get("body")
            image = image["data"] if isinstance(image, dict) else image
            image = base64.b64decode(image) if isinstance(image, str) else image
            stream = io.BytesIO()
            Image.open(io.BytesIO(image)).resize((2, 2)).save(stream, "PPM")
            context.set_response_content_type(index, "image/x-portable-pixmap")
            answers.append(stream.getvalue())
        return answers
'''

STATUS = (
    _ROWS
    + '''
class Judge:
    """Sets a status and a header for each request."""

    def initialize(self, context):
        pass

    def handle(self, data, context):
        answers = []
        for index, row in enumerate(data):
            text = payload(row)
            context.set_response_header(index, "x-length", str(len(text)))
            if text.startswith("bad"):
                context.set_response_status(422, "Unprocessable", index)
            answers.append({"text": text})
        return answers
'''
)

NUMBERS = '''
class Total:
    """Takes a JSON list as the body, changes its rows, and reads a header."""

    def initialize(self, context):
        pass

    def handle(self, data, context):
        bodies = [row.pop("body") for row in data]
        users = [context.get_request_header(index, "x-user") for index in range(len(data))]
        return [{"total": sum(body), "user": user} for body, user in zip(bodies, users)]
'''


def _png(shade):
    stream = io.BytesIO()
    Image.new("L", (3, 3), shade).save(stream, "PNG")
    return stream.getvalue()


def _form(name, value, kind=""):
    return Ask(((name, kind, value),), {"content-type": "application/x-www-form-urlencoded"})


def _files(*parts):
    return Ask(
        tuple((name, "image/png", data) for name, data in parts), {"content-type": "multipart/form-data"}
    )


def _v1(*values, **headers):
    return ask_json({"instances": list(values)}, **headers)


_SUMS = {"id": "7", "inputs": [tensor([1, 2]), tensor([3.5], name="y")]}
_TALK = {"inputs": [{"role": "user", "text": "hi"}], "parameters": {"max": 3}}
_B64 = base64.b64encode(_png(7)).decode()

_TEXT_TALK = json.dumps(_TALK).encode()

IDIOMS = {
    "base": (BASE, [ask_json([1, 2]), ask_raw(b"[3, 4]"), _form("data", b"[5, 6]")]),
    "explain": (BASE, [ask_json([1, 2], explain="True")]),
    "function": (
        FUNCTION,
        [ask_raw(b"abc"), ask_raw(b"ab", "text/plain"), ask_json([1]), _form("data", b"abcd")],
    ),
    "keys": (KEYS, [ask_json({"data": "QUJD"}), ask_json({"a": 1, "b": 2})]),
    "instances": (INSTANCES, [_v1(2, 4), _v1(), _v1(1.5, **{"kdeploy-api": "v1"})]),
    "inputs": (INPUTS, [ask_json(_SUMS), ask_json(_SUMS, **{"kdeploy-api": "v2"})]),
    "turns": (
        TURNS,
        [ask_json(_TALK), ask_json({"inputs": []}), ask_raw(_TEXT_TALK), ask_json({"inputs": "hi"})],
    ),
    "text": (
        TEXT,
        [ask_raw("grün a".encode()), ask_raw(b"c d", "text/plain"), _form("data", b"e"), ask_json("g h")],
    ),
    "frames": (
        FRAMES,
        [_files(*((f"f{n}", bytes(n)) for n in range(8))), _files(("photo", b"1"), ("mask", b"22"))],
    ),
    "stream": (STREAM, [ask_raw(b"q r s t"), ask_raw(b"u"), ask_json("v w")]),
    "picture": (PICTURE, [ask_raw(_png(9)), _files(("data", _png(3))), ask_json({"data": _B64})]),
    "status": (STATUS, [ask_raw(b"good"), ask_raw(b"bad one"), ask_raw(b"bad", "text/plain")]),
    "numbers": (NUMBERS, [ask_json([1, 2]), ask_json([3], **{"x-user": "ada"}), ask_json([])]),
}
