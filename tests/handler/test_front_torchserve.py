"""On a real TorchServe, behind the front: the API of the path, binary data, and hostile requests."""

import base64
import http.client
import json
import random
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.handler.mutations import mutated
from tests.handler.torchserve_worker import tensor

pytestmark = pytest.mark.torchserve

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl's -d


def post(port, path, body, headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


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
    front = behind_front(torchserve.inference)
    status, _, answer = post(front, "/predictions/batched", json.dumps(body), JSON)
    assert (status, json.loads(answer)) == (200, {"saw": body, "rows": 1})


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
    """Send each hostile request with three neighbors. The neighbors' answers are right."""
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
