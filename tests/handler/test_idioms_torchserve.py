"""On real TorchServes: the answers of plain TorchServe, and of KServe's envelopes, at batch 1 and 8."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.handler.conftest import serve, write_archive
from tests.handler.idioms import IDIOMS
from tests.handler.test_front_torchserve import FORM, JSON, post
from tests.handler.test_v2 import IMAGE
from tests.handler.torchserve_worker import tensor

pytestmark = pytest.mark.torchserve

MARK = "--mark"


def together(count, port, *request):
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda _: post(port, *request), range(count)))


def as_http(ask):
    """Return the body and the headers of a client's request for what TorchServe passes to its worker."""
    headers = {key: value for key, value in ask.headers.items() if key not in ("content-type", "kdeploy-api")}
    kind = ask.headers.get("content-type", "")
    if kind.startswith("multipart"):
        parts = [
            f'{MARK}\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n'.encode()
            + f"Content-Type: {kind}\r\n\r\n".encode()
            + data
            for name, kind, data in ask.parts
        ]
        body = b"\r\n".join([*parts, f"{MARK}--\r\n".encode()])
        return body, {**headers, "Content-Type": f"multipart/form-data; boundary={MARK[2:]}"}
    [(name, kind, data)] = ask.parts
    if name != "body":
        return f"{name}=".encode() + data.replace(b" ", b"+"), {**headers, **FORM}
    return data, {**headers, "Content-Type": kind} if kind else headers


@pytest.mark.full
def test_handlers_answer_as_on_plain_torchserve(tmp_path, behind_front):
    (tmp_path / "store").mkdir()
    models, names = {}, sorted({*IDIOMS} - {"explain", "keys", "function", "numbers", "status"})
    for name in names:
        write_archive(tmp_path / "store", f"plain{name}", IDIOMS[name][0], adapted=False)
        write_archive(tmp_path / "store", f"adapted{name}", IDIOMS[name][0])
        models |= {f"plain{name}": {"batchSize": 1}, f"adapted{name}": {"maxBatchDelay": 100}}
    with serve(tmp_path, models) as server:
        front = behind_front(server.inference)
        for name in names:
            for ask in IDIOMS[name][1]:
                path = {"v1": "/v1/models/%s:predict", "v2": "/v2/models/%s/infer"}
                path = path.get(ask.headers.get("kdeploy-api"), "/predictions/%s")
                body, headers = as_http(ask)
                status, _, expected = post(server.inference, path % f"plain{name}", body, headers)
                expected = expected.replace(b"plain", b"adapted")
                assert status == 200, (name, expected)
                for count in (1, 8):
                    for answer in together(count, front, path % f"adapted{name}", body, headers):
                        assert (answer[0], answer[2]) == (status, expected), (name, count)


VISION = '''
import torch

class Classes:
    """Reads rows as TorchServe's vision handlers do."""

    def initialize(self, context):
        pass

    def handle(self, data, context):
        images = [row.get("data") or row.get("body") for row in data]
        images = [[ord(c) for c in image] if isinstance(image, str) else image for image in images]
        answers = [int(torch.tensor(image, dtype=torch.float64).sum()) % 10 for image in images]
        if context.get_request_header(0, "explain") == "True":
            return [[answer, 0.5] for answer in answers]
        return answers
'''

V1 = [
    {"instances": [{"data": "iVBORw0KGgo"}]},
    {"instances": [{"data": IMAGE}, {"data": "QUJD", "target": 0}]},
]
V2 = [
    {"id": "d3b15cad", "inputs": [tensor(["iVBORw0KGgo"], [1], "BYTES", "4b7c7d4a")]},
    {"id": "d3b15cae", "inputs": [tensor([IMAGE], [1, 28, 28], "FP32", "input-0")]},
    {"id": "d3b15caf", "inputs": [tensor(list(b"Bloomberg has reported"), [22], "INT64", "input-0")]},
]
LINES = {
    "kserve": (V1, ["/v1/models/%s:predict", "/v1/models/%s:explain"]),
    "kservev2": (V2, ["/v2/models/%s/infer", "/v2/models/%s/explain"]),
}


@pytest.mark.full
@pytest.mark.parametrize("envelope", LINES)
def test_kserves_request_lines_answer_as_with_its_envelope(tmp_path, behind_front, envelope):
    bodies, paths = LINES[envelope]
    answers = {}
    for adapted in (False, True):
        root = tmp_path / str(adapted)
        (root / "store").mkdir(parents=True)
        write_archive(root / "store", "mnist", VISION, adapted=adapted)
        more = {} if adapted else {"service_envelope": envelope}
        with serve(root, {"mnist": {"batchSize": 8 if adapted else 1}}, **more) as server:
            port = behind_front(server.inference) if adapted else server.inference
            kind = FORM if adapted else JSON  # KServe's lines declare no type
            for path in paths:
                for number, body in enumerate(bodies):
                    request = (path % "mnist", json.dumps(body), kind)
                    results = together(8 if adapted else 1, port, *request)
                    answers[adapted, path, number] = [
                        (status, json.loads(text)) for status, _, text in results
                    ]
    for (adapted, *line), given in answers.items():
        assert given == answers[(False, *line)] * len(given), (adapted, line)
        assert given[0][0] == 200
