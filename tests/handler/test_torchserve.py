"""The adapter in a real TorchServe, with batches of 8 and 16 clients: every request gets its own answer."""

import base64
import http.client
import json
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field

import pytest

pytestmark = pytest.mark.torchserve

CLIENTS = 16
LIMIT = 90  # maximum for a load, in seconds
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Call:
    """One HTTP request, and the expected status and body of its answer."""

    path: str
    body: bytes
    headers: dict = field(default_factory=dict)
    status: int = 200
    saw: object = None  # the expected row
    read: object = None  # returns the row from the answer


def v1_rows(answer):
    return [prediction["saw"] for prediction in answer["predictions"]]


def v2_rows(answer):
    [output] = answer["outputs"]
    assert output["shape"] == [len(output["data"])]
    assert (answer["model_name"], answer["model_version"]) == ("batched", "1.0")
    return [answer["id"], *(json.loads(value)["saw"] for value in output["data"])]


def own_row(answer):
    return answer["saw"]


def v1(*rows, path="/v1/models/batched:predict"):
    body = json.dumps({"instances": [{"data": row} for row in rows]}).encode()
    return Call(path, body, JSON, saw=list(rows), read=v1_rows)


def v1_without_type(row):
    body = json.dumps({"instances": [row]}).encode()
    return Call("/predictions/batched", body, {"Content-Type": "image/png"}, saw=[row], read=v1_rows)


def v2_bytes(*rows):
    tensor = {"name": "x", "shape": [len(rows)], "datatype": "BYTES", "data": list(rows)}
    body = json.dumps({"id": rows[0], "inputs": [tensor]}).encode()
    return Call("/v2/models/batched/infer", body, JSON, saw=[rows[0], *rows], read=v2_rows)


def v2_tensor(number):
    tensor = {"name": "x", "shape": [2, 2], "datatype": "INT64", "data": [number, 1, number, 2]}
    body = json.dumps({"id": str(number), "inputs": [tensor]}).encode()
    saw = [str(number), [[number, 1], [number, 2]]]
    return Call("/v2/models/batched/infer", body, JSON, saw=saw, read=v2_rows)


def raw(text):
    return Call("/predictions/batched", text.encode(), {"Content-Type": "image/png"}, saw=text, read=own_row)


def own_json(text, path="/v1/models/batched:predict"):
    body = json.dumps({"data": text}).encode()
    return Call(path, body, JSON, saw={"data": text}, read=own_row)


def multipart(text):
    body = (
        '--mark\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\n'
        f"Content-Type: image/png\r\n\r\n{text}\r\n--mark--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=mark"}
    return Call("/predictions/batched", body.encode(), headers, saw=text, read=own_row)


def form(text):
    body = urllib.parse.urlencode({"data": text}).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return Call("/predictions/batched", body, headers, saw=text, read=own_row)


def classic_v1(text):
    encoded = base64.b64encode(text.encode()).decode()
    body = json.dumps({"instances": [{"data": encoded}]}).encode()
    read = lambda answer: [prediction["picture"] for prediction in answer["predictions"]]  # noqa: E731
    return Call("/v1/models/classic:predict", body, JSON, saw=[text], read=read)


def classic_own(text):
    """Return a request that is neither V1 nor V2: the answer is the handler's JSON."""
    body = json.dumps({"data": base64.b64encode(text.encode()).decode()}).encode()
    saw = {"picture": text, "handler": "classic_handler.py"}
    return Call("/v1/models/classic:predict", body, JSON, saw=saw, read=lambda answer: answer)


def bad_v2(datatype, data):
    tensor = {"name": "x", "shape": [1], "datatype": datatype, "data": data}
    return Call("/v2/models/batched/infer", json.dumps({"inputs": [tensor]}).encode(), JSON)


def failing(call, status):
    return Call(call.path, call.body, call.headers, status)


def send(connection, call):
    connection.request("POST", call.path, call.body, call.headers)
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def is_right(call, status, body):
    try:
        return status == call.status and (status != 200 or call.read(json.loads(body)) == call.saw)
    except (AssertionError, KeyError, TypeError, ValueError):
        return False


def load(server, calls):
    """Send the calls from 16 clients. Return the statuses, the wrong answers, and all answers."""
    calls, lock = iter(list(calls)), threading.Lock()
    statuses, wrong, bodies = Counter(), [], []
    deadline = time.monotonic() + LIMIT

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", server.inference, timeout=30)
        while time.monotonic() < deadline:
            with lock:
                call = next(calls, None)
            if call is None:
                break
            status, _, body = send(connection, call)
            with lock:
                statuses[status] += 1
                bodies.append(body)
                if not is_right(call, status, body):
                    wrong.append((call, status, body))
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, wrong, bodies


def one(server, call):
    connection = http.client.HTTPConnection("127.0.0.1", server.inference, timeout=30)
    try:
        return send(connection, call)
    finally:
        connection.close()


def test_2000_v1_requests_of_16_clients_without_an_error(torchserve):
    statuses, wrong, bodies = load(torchserve, (v1(f"row-{number}") for number in range(2000)))
    assert wrong == []
    assert statuses == {200: 2000}
    rows = Counter(json.loads(body)["predictions"][0]["rows"] for body in bodies)
    assert max(rows) == 8, f"batches were never filled: {rows}"


def test_every_protocol_in_one_load(torchserve):
    kinds = [
        lambda text, _: v1(text),
        lambda text, _: v1(text, text + "b", text + "c"),
        lambda text, _: v1(),
        lambda text, _: v1_without_type(text),
        lambda text, _: v2_bytes(text, text + "b"),
        lambda _, number: v2_tensor(number),
        lambda text, _: raw(text),
        lambda text, _: own_json(text),
        lambda text, _: own_json(text, "/predictions/batched"),
        lambda text, _: multipart(text),
        lambda text, _: form(text),
    ]
    calls = [kinds[number % len(kinds)](f"mix-{number}", number) for number in range(2200)]
    statuses, wrong, _ = load(torchserve, calls)
    assert wrong == []
    assert statuses == {200: 2200}


def test_a_one_row_handler_under_the_same_load(torchserve):
    calls = ((classic_v1, classic_own)[number % 2](f"picture {number}") for number in range(2000))
    statuses, wrong, _ = load(torchserve, calls)
    assert wrong == []
    assert statuses == {200: 2000}
    assert "so batching is off" in torchserve.model_log()


def test_an_error_fails_only_its_own_request(torchserve):
    bad_v1 = Call("/predictions/batched", b'{"instances": [3', JSON)
    kinds = [
        lambda text: v1(text),
        lambda text: failing(v1(text, "poison"), 500),
        lambda text: own_json(text),
        lambda text: failing(raw("refused"), 422),
        lambda text: failing(bad_v2("FP32", [1, 2]), 400),
        lambda text: failing(bad_v1, 400),
        lambda text: failing(raw("array"), 500),  # the handler's answer cannot be JSON
        lambda text: v2_bytes(text),
    ]
    calls = [kinds[number % len(kinds)](f"row-{number}") for number in range(800)]
    statuses, wrong, _ = load(torchserve, calls)
    assert wrong == []
    assert statuses == {200: 300, 400: 200, 422: 100, 500: 200}


@pytest.mark.parametrize(
    ("call", "status", "body"),
    [
        (v1("a", "poison"), 500, {"error": "ValueError: poison", "row": 1}),
        (v1("refused"), 422, {"error": "no such digit", "row": 0}),
        (v1("array"), 200, {"predictions": [[0, 1, 2]]}),
        (bad_v2("BYTES", [5]), 400, {"error": "inputs[0]: data has a value that is not BYTES"}),
        (v1(path="/v1/models/batched:explain"), 200, {"explanations": []}),
    ],
)
def test_status_and_body_for_a_client(torchserve, call, status, body):
    got, headers, text = one(torchserve, call)
    assert got == status
    assert headers["Content-Type"] == "application/json"
    assert json.loads(text) == body


def test_the_log_has_the_error_of_a_handler_that_cannot_load(torchserve):
    deadline = time.monotonic() + LIMIT
    while "surely_not_there" not in torchserve.model_log():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not torchserve.is_ready("broken")
    assert "ModuleNotFoundError: No module named 'surely_not_there'" in torchserve.model_log()
    assert "No module named 'ts.torch_handler" not in torchserve.model_log()
