"""On a real TorchServe, behind the front: handlers answer as on plain TorchServe and with KServe's envelopes."""

import asyncio
import base64
import http.client
import json
import random
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from manifests.front import Front
from tests.handler.conftest import serve, write_archive
from tests.handler.idioms import IDIOMS
from tests.handler.mutations import mutated
from tests.handler.test_v2 import IMAGE
from tests.handler.torchserve_worker import tensor

pytestmark = pytest.mark.torchserve

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl's -d
MARK = "--mark"


@pytest.fixture
def behind_front():
    """Return a function that starts a front before a port of TorchServe, and returns the front's port."""
    loop, fronts = asyncio.new_event_loop(), []
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start(port):
        fronts.append(Front(port, None))
        await fronts[-1].listen("127.0.0.1", 0)
        return fronts[-1]._server.sockets[0].getsockname()[1]

    yield lambda port: asyncio.run_coroutine_threadsafe(start(port), loop).result(10)

    async def stop():
        for front in fronts:
            await front.close()

    asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def post(port, path, body, headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


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


# ---- on the server of the other tests


def test_curls_form_is_read_as_json(torchserve, behind_front):
    front = behind_front(torchserve.inference)
    text = base64.b64encode(b"\xfb\xff a & b = c").decode()
    v1 = json.dumps({"instances": [{"data": text}]})
    status, _, body = post(front, "/v1/models/batched:predict", v1, FORM)
    assert status == 200, body
    assert (status, json.loads(body)["predictions"][0]["saw"]) == (200, text)
    v2 = json.dumps({"inputs": [tensor(text, -1, "BYTES")]})
    status, _, body = post(front, "/v2/models/batched/infer", v2, FORM)
    assert (status, json.loads(json.loads(body)["outputs"][0]["data"][0])["saw"]) == (200, text)


def test_torchserves_own_path_keeps_a_v1_body(torchserve, behind_front):
    body = {"instances": [{"data": "a"}]}
    for port, expected in ((behind_front(torchserve.inference), {"saw": body, "rows": 1}),):
        status, _, answer = post(port, "/predictions/batched", json.dumps(body), JSON)
        assert (status, json.loads(answer)) == (200, expected)


def test_binary_tensors_of_a_client(torchserve, behind_front):
    front = behind_front(torchserve.inference)
    sent = {"name": "x", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    text = json.dumps({"inputs": [sent], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
    status, given, body = post(front, "/v2/models/batched/infer", text + struct.pack("<2f", 1, 2), headers)
    size = int(given["Inference-Header-Content-Length"])
    [output] = json.loads(body[:size])["outputs"]
    data = body[size:]
    assert (status, given["Content-Type"]) == (200, "application/octet-stream")
    assert (output["datatype"], output["parameters"]) == ("BYTES", {"binary_data_size": len(data)})
    assert json.loads(data[4:]) == {"saw": [1.0, 2.0], "rows": 1}


def fuzz(server, port, seeds):
    """Send each hostile request with three neighbors at once. The neighbors' answers are right."""
    before = server.worker("batched")
    with ThreadPoolExecutor(4) as threads:
        for seed in seeds:
            ask = mutated(random.Random(seed))
            hostile = b"".join(data for _, _, data in ask.parts)
            headers = {
                name: value
                for name, value in ask.headers.items()
                if value.isascii() and name.lower() != "content-type"
            }
            path = ["/v1/models/batched:predict", "/v2/models/batched/infer", "/predictions/batched"][
                seed % 3
            ]
            requests = [(path, hostile, {**headers, **[JSON, FORM, {}][seed % 3]})]
            requests += [
                ("/v1/models/batched:predict", json.dumps({"instances": [f"a{seed}"]}), JSON),
                ("/predictions/batched", f"b{seed}", {"Content-Type": "text/plain"}),
                ("/predictions/batched", json.dumps({"c": seed}), JSON),
            ]
            answers = list(threads.map(lambda request: post(port, *request), requests))
            status, _, body = answers[0]
            assert status in (200, 400) or (status == 500 and b"error" in body), (seed, answers[0])
            assert [status for status, _, _ in answers[1:]] == [200] * 3, (seed, answers)
            v1, text, own = [json.loads(body) for _, _, body in answers[1:]]
            assert v1["predictions"][0]["saw"] == f"a{seed}"
            assert (text["saw"], own["saw"]) == (f"b{seed}", {"c": seed})
    assert server.worker("batched") == before


def test_60_hostile_requests(torchserve, behind_front):
    fuzz(torchserve, behind_front(torchserve.inference), range(60))


@pytest.mark.full
def test_1000_hostile_requests(torchserve, behind_front):
    fuzz(torchserve, behind_front(torchserve.inference), range(60, 1_060))


# ---- on servers of their own


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
