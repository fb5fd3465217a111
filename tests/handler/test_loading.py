"""TorchServe's loader loads the adapter, and the adapter loads every form of handler."""

import ast
import base64
import io
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from ts.model_loader import ModelLoaderFactory

from tests.handler.torchserve_worker import ADAPTER, ask_raw, ask_v1, ask_v2, predict, tensor, worker_metrics

CLASS = """
class Digits:
    def initialize(self, context):
        self.name = context.manifest["model"]["handler"]
        self.model_dir = context.system_properties.get("model_dir")

    def handle(self, data, context):
        return [[self.name, self.model_dir, len(row["data"])] for row in data]
"""

FUNCTION = """
state = {}

def %s(data, context):
    if data is None:
        state["name"] = context.manifest["model"]["handler"]
        return None
    return [[state["name"], "function", len(row["data"])] for row in data]
"""

LINEAR = """
import torch

class Linear(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 3)
"""

BASE_HANDLER = """
import torch
from ts.torch_handler.base_handler import BaseHandler

class Scorer(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([row.get("data") or row.get("body") for row in data])
"""


class Archive:
    """An unpacked model archive, loaded as TorchServe's worker loads it."""

    def __init__(self, model_dir):
        self.model_dir = model_dir
        (model_dir / "MAR-INF").mkdir()
        for file in ADAPTER:
            (model_dir / file.name).write_bytes(file.read_bytes())

    def write(self, **files):
        for name, text in files.items():
            (self.model_dir / f"{name}.py").write_text(text)

    def load(self, handler, **model):
        model = {"modelName": "m", "modelVersion": "1", "handler": "kdeploy_handler.py", **model}
        (self.model_dir / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"model": model}))
        (self.model_dir / "kdeploy_handler.json").write_text(json.dumps({"handler": handler}))
        return self.bring_up()

    def bring_up(self):
        loader = ModelLoaderFactory.get_model_loader()
        where = str(self.model_dir)
        service = loader.load("m", where, "kdeploy_handler.py", None, 8, None, True, worker_metrics())
        service.set_cl_socket(None)
        return service

    def predict(self, handler, *asks, **model):
        code, answers = predict(self.load(handler, **model), *asks)
        assert code == 200
        return answers


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield Archive(tmp_path)
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


def test_a_class(archive):
    archive.write(digits_handler=CLASS)
    [answer] = archive.predict("digits_handler.py", ask_v1({"data": "abc"}, {"data": "ab"}))
    where = str(archive.model_dir)
    assert answer.json == {"predictions": [["digits_handler.py", where, 3], ["digits_handler.py", where, 2]]}


def test_a_class_beside_classes_without_handle(archive):
    archive.write(digits_handler="class Box:\n    pass\n" + CLASS)
    [answer] = archive.predict("digits_handler.py", ask_v1({"data": "abc"}))
    assert answer.status == 200


def test_a_function_handle(archive):
    archive.write(plain_handler="class Box:\n    pass\n" + FUNCTION % "handle")
    [answer] = archive.predict("plain_handler.py", ask_v1("abc"))
    assert answer.json == {"predictions": [["plain_handler.py", "function", 3]]}


def test_a_named_function(archive):
    archive.write(named_handler=FUNCTION % "predict" + CLASS)
    [answer] = archive.predict("named_handler.py:predict", ask_v1("abc"))
    assert answer.json == {"predictions": [["named_handler.py:predict", "function", 3]]}


def test_a_subclass_of_torchserves_base_handler_with_weights(archive):
    archive.write(scorer_handler=BASE_HANDLER, linear=LINEAR)
    layer = torch.nn.Linear(2, 3)
    torch.save(layer.state_dict(), archive.model_dir / "linear.pt")
    answers = archive.predict(
        "scorer_handler.py",
        ask_v1([1.0, 2.0], {"data": [3.0, 4.0]}),
        ask_v2(tensor([5.0, 6.0], [2])),
        modelFile="linear.py",
        serializedFile="linear.pt",
    )
    expected = layer(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).tolist()
    assert answers[0].json["predictions"] == [pytest.approx(row) for row in expected[:2]]
    assert answers[1].json["outputs"][0]["shape"] == [3]
    assert answers[1].json["outputs"][0]["data"] == pytest.approx(expected[2])


def test_torchserves_base_handler_by_name(archive):
    """It accepts rows that are lists, and no dict around them."""
    archive.write(linear=LINEAR)
    layer = torch.nn.Linear(2, 3)
    torch.save(layer.state_dict(), archive.model_dir / "linear.pt")
    service = archive.load("base_handler", modelFile="linear.py", serializedFile="linear.pt")
    assert service.context.manifest["model"]["handler"] == "base_handler"
    _, answers = predict(service, ask_v1([1.0, 2.0]), ask_v1([3.0, 4.0]))
    expected = layer(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    assert [answer.json["predictions"][0] for answer in answers] == [pytest.approx(row) for row in expected]


VISION = '''
import base64
import io

import torch
from PIL import Image

class Brightness:
    """Reads rows as TorchServe's vision handlers do."""

    def initialize(self, context):
        pass

    def handle(self, data, context):
        answers = []
        for row in data:
            image = row.get("data") or row.get("body")
            if isinstance(image, str):
                image = base64.b64decode(image)
            if isinstance(image, (bytearray, bytes)):
                pixels = Image.open(io.BytesIO(image)).tobytes()
                answers.append(sum(pixels) / len(pixels))
            else:
                answers.append(torch.FloatTensor(image).mean().item())
        return answers
'''


def test_a_vision_handler_reads_every_protocol(archive):
    archive.write(vision=VISION)
    stream = io.BytesIO()
    Image.new("L", (2, 2), 7).save(stream, "PNG")
    text = base64.b64encode(stream.getvalue()).decode()
    answers = archive.predict(
        "vision.py",
        ask_raw(stream.getvalue()),
        ask_raw(stream.getvalue(), "image/png", name="data"),
        ask_v1({"data": text}, text, [[1, 2], [3, 4]]),
        ask_v2(tensor([text], datatype="BYTES")),
        ask_v2(tensor([1, 2, 3, 4], [1, 2, 2])),
    )
    assert [answer.body for answer in answers[:2]] == [b"7.0", b"7.0"]
    assert answers[2].json == {"predictions": [7, 7, 2.5]}
    assert answers[3].json["outputs"][0]["data"] == [7]
    assert answers[4].json["outputs"][0]["data"] == [2.5]


FAILURES = {
    "a missing module": ("import surely_not_there", ModuleNotFoundError, "surely_not_there"),
    "a syntax error": ("def handle(:", SyntaxError, "broken.py"),
    "an exception": ("raise RuntimeError('no license')", RuntimeError, "no license"),
    "no class": ("x = 1", ValueError, "broken.py needs a function, or one class with a method handle"),
    "two classes": (CLASS + CLASS.replace("Digits", "Other"), ValueError, "Digits.*Other|Other.*Digits"),
    "initialize": (CLASS.replace("context.manifest", "context.missing"), AttributeError, "missing"),
    "a function that fails without data": (
        "def handle(data, context): return len(data)",
        TypeError,
        "'NoneType' has no len.*; TorchServe first calls a function with data=None",
    ),
    "a function that iterates without data": (
        "def handle(data, context): return [row['body'] for row in data]",
        TypeError,
        "NoneType.* is not iterable; TorchServe first calls a function with data=None",
    ),
    "a function that reads without data": (
        "def handle(data, context): return [data.pop()]",
        AttributeError,
        "no attribute 'pop'; TorchServe first calls a function with data=None",
    ),
    "a function that fails otherwise": (
        "def handle(data, context): open(5.5)",
        TypeError,
        "^[^;]*$",
    ),
}


@pytest.mark.parametrize(("text", "error", "sentence"), FAILURES.values(), ids=FAILURES)
def test_an_error_while_loading_is_raised_unchanged(archive, text, error, sentence):
    archive.write(broken=text)
    with pytest.raises(error, match=sentence):
        archive.load("broken.py")


@pytest.mark.parametrize(
    ("handler", "error", "sentence"),
    [
        ("forgotten.py", ModuleNotFoundError, "No module named 'forgotten'"),
        ("no_such_handler", ModuleNotFoundError, "No module named 'ts.torch_handler.no_such_handler'"),
        ("digits_handler.py:missing", AttributeError, "missing"),
    ],
)
def test_a_missing_handler(archive, handler, error, sentence):
    archive.write(digits_handler=CLASS)
    with pytest.raises(error, match=sentence):
        archive.load(handler)


def test_missing_settings_are_named(archive):
    with pytest.raises(FileNotFoundError, match=r"kdeploy_handler\.json"):
        archive.bring_up()


@pytest.mark.parametrize("file", ADAPTER, ids=lambda file: file.stem)
def test_the_adapter_needs_python_3_9_the_standard_library_and_torchserve(file):
    tree = ast.parse(file.read_text(), feature_version=(3, 9))
    names = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert tree.body
    assert set(names) <= {"ts.context", *sys.stdlib_module_names, *(own.stem for own in ADAPTER)}
