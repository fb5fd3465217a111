"""The client with real servers on loopback that respond like TorchServe, Istio and Dex, or not at all."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deployer
from deployer.errors import NotReachedError, PredictError
from deployer.patience import Retry
from deployer.predict import Client, Failure, Prediction, inputs
from deployer.predict import connection as wire
from deployer.targets.protocols import Endpoint
from tests.clocks import patience
from tests.unit.predict.loopback import Reply

ROOT = Path(deployer.__file__).parents[1]
SECRET = "s3cr3t-t0ken"


def never(seconds: float) -> None:
    raise AssertionError(f"slept {seconds} s")


def ask(server, paths, protocol="plain", host=None, **options) -> list[Prediction | Failure]:
    with Client(
        Endpoint(server.url, host), "digits", timeout=10, patience=patience(never), **options
    ) as client:
        return list(client.predict(paths, protocol))


def error_of(answer: Prediction | Failure) -> PredictError:
    assert isinstance(answer, Failure), answer
    assert answer.error.hint
    return answer.error


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "seven.png"
    Image.new("L", (8, 8), 7).save(path)
    return path


def like_torchserve(asked) -> Reply:
    """Reply like kdeploy's adapter with a handler that returns the number of bytes."""
    if asked.path == "/predictions/digits":
        return Reply(200, json.dumps({"bytes": len(asked.body)}).encode())
    document = json.loads(asked.body)
    if asked.path == "/v1/models/digits:predict":
        rows = [row["data"] for row in document["instances"]]
        answers = [{"bytes": len(base64.b64decode(row))} for row in rows]
        return Reply(200, json.dumps({"predictions": answers}).encode())
    [tensor] = document["inputs"]
    data = [json.dumps({"bytes": len(base64.b64decode(row))}) for row in tensor["data"]]
    out = {"name": "input-0", "shape": [len(data)], "datatype": "BYTES", "data": data}
    return Reply(200, json.dumps({"model_name": "digits", "outputs": [out]}).encode())


@pytest.mark.parametrize("protocol", ["plain", "v1", "v2"])
def test_an_image_is_sent_in_each_protocol(server, picture, protocol):
    server.answering = like_torchserve
    [answer] = ask(server, [picture], protocol)
    assert answer == Prediction(
        name=str(picture), value={"bytes": picture.stat().st_size}, milliseconds=answer.milliseconds
    )
    assert answer.milliseconds > 0
    [asked] = server.asked
    assert asked.method == "POST"
    assert asked.headers["content-type"] == ("image/png" if protocol == "plain" else "application/json")


def test_the_request_has_the_host_of_the_service(server, picture):
    server.answering = like_torchserve
    ask(server, [picture], "v1", host="digits.default.example.com", headers={"Authorization": "Bearer x"})
    [asked] = server.asked
    assert asked.headers["host"] == "digits.default.example.com"
    assert asked.headers["authorization"] == "Bearer x"


def test_a_path_prefix_of_the_endpoint_is_kept(server, picture):
    server.answering = lambda asked: Reply(200, json.dumps(asked.path).encode())
    client = Client(Endpoint(f"{server.url}/serving/team/"), "digits")
    [answer] = client.predict([picture])
    assert answer.value == "/serving/team/predictions/digits"


def test_json_files_are_sent_as_json(server, tmp_path):
    server.answering = lambda asked: Reply(200, asked.body)
    (one := tmp_path / "one.json").write_text('{"x": 1}')
    [answer] = ask(server, [one])
    assert answer.value == {"x": 1}
    server.answering = lambda asked: Reply(
        200, json.dumps({"predictions": json.loads(asked.body)["instances"]}).encode()
    )
    (many := tmp_path / "many.JSON").write_text('{"instances": [1, 2]}')
    assert [answer.value for answer in ask(server, [one, many], "v1")] == [{"x": 1}, [1, 2]]


TALK = {"inputs": [{"role": "user", "text": "hi"}], "parameters": {"n": 1}}
V2 = {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}


def echo(asked) -> Reply:
    return Reply(200, json.dumps([asked.path, asked.headers["content-type"], asked.body.decode()]).encode())


@pytest.mark.parametrize(
    ("name", "content", "sent"),
    [
        ("t.txt", b"one two\nthree", b"one two\nthree"),
        ("t.csv", b"\xef\xbb\xbfa,b\r\n1,2\r\n", b"a,b\r\n1,2\r\n"),
        ("review", "très bien".encode(), "très bien".encode()),
        ("notes.txt", "text".encode("utf-16"), b"text"),
    ],
)
def test_a_text_file_is_the_same_text_in_each_protocol(server, tmp_path, name, content, sent):
    (path := tmp_path / name).write_bytes(content)
    server.answering = lambda asked: Reply(200, b"{}")
    for protocol in ("plain", "v1", "v2"):
        ask(server, [path], protocol)
    plain, v1, v2 = (asked.body for asked in server.asked)
    assert plain == sent
    assert json.loads(v1) == {"instances": [{"data": sent.decode()}]}
    assert json.loads(v2)["inputs"][0]["data"] == [sent.decode()]


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (TALK, "/predictions/digits"),
        (V2, "/v2/models/digits/infer"),
        ({"instances": [1, 2]}, "/v1/models/digits:predict"),
    ],
)
def test_a_request_is_sent_by_its_own_protocol_if_none_is_named(server, tmp_path, document, path):
    server.answering = echo
    (file := tmp_path / "talk.json").write_text(json.dumps(document))
    (same := tmp_path / "talk").write_text(json.dumps(document))
    with Client(Endpoint(server.url), "digits") as client:
        for answer in client.predict([file, same], "plain", follow=True):
            assert answer.value == [path, "application/json", json.dumps(document)]
        [answer] = client.predict([file], "plain")
        assert answer.value[0] == "/predictions/digits"


def test_each_line_of_a_jsonl_file_is_a_request_with_its_own_error(server, tmp_path):
    server.answering = lambda asked: Reply(200, asked.body)
    (path := tmp_path / "rows.jsonl").write_text('{"x": 1}\n\n{"x": \n[3]\n')
    first, second, third = ask(server, [path])
    assert (first.name, first.value) == (f"{path}:1", {"x": 1})
    assert (third.name, third.value) == (f"{path}:4", [3])
    assert str(error_of(second)).startswith(f"{path}:3: invalid JSON")
    [missing] = ask(server, [tmp_path / "no.jsonl"])
    assert "No such file" in error_of(missing).what


def test_stdin_and_data_are_json_an_image_or_text(server, picture):
    server.answering = lambda asked: Reply(200, json.dumps(asked.headers["content-type"]).encode())
    given = [
        b'{"x": 1}',
        b"[1]",
        b"7",
        b"hello",
        b"{x",
        b"[INST] hi [/INST]",
        picture.read_bytes(),
        b"\xff\xfe",
    ]
    answers = ask(server, [inputs.of_bytes(inputs.STDIN, data) for data in given])
    assert [answer.value for answer in answers] == [
        *["application/json"] * 3,
        *["text/plain"] * 3,
        "image/png",
        "application/octet-stream",
    ]
    [answer] = ask(server, [inputs.of_bytes(inputs.DATA, b"{x: 1}")])
    assert "invalid JSON" in error_of(answer).what
    with pytest.raises(PredictError, match="the input is empty"):
        inputs.of_bytes(inputs.STDIN, b"\n")


def test_an_image_from_stdin_is_resized(server):
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(
        data, "PNG"
    )
    server.answering = like_torchserve
    [answer] = ask(
        server, [inputs.of_bytes(inputs.STDIN, data.getvalue())], "v1", max_request_size=30_000, resize=True
    )
    assert answer.resized.note.startswith("stdin: ")


def test_explanations_are_requested(server, picture):
    server.answering = lambda asked: Reply(200, json.dumps({"explanations": [asked.path]}).encode())
    with Client(Endpoint(server.url), "digits") as client:
        [answer] = client.predict([picture], "v1", explain=True)
    assert answer.value == "/v1/models/digits:explain"


def test_a_large_image_is_resized_to_the_limit_and_the_result_reports_it(server, tmp_path):
    path = tmp_path / "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(path)
    server.answering = like_torchserve
    for protocol in ("plain", "v1", "v2"):
        [answer] = ask(server, [path], protocol, max_request_size=30_000, resize=True)
        assert answer.resized.note.startswith(f"{path}: ")
        assert answer.resized.factor == answer.resized.width / 200 < 1
        assert 15_000 < len(server.asked[-1].body) <= 30_000
    [answer] = ask(server, [path], "v1", max_request_size=30_000)
    assert answer.milliseconds is None
    assert str(error_of(answer)).startswith(f"{path}: ")
    assert len(server.asked) == 3


def test_json_that_is_too_large_as_a_request_is_not_sent(server, tmp_path):
    (path := tmp_path / "row.json").write_text('"' + "x" * 50 + '"')
    [answer] = ask(server, [path], "v1", max_request_size=55)
    assert "68 bytes, the limit is 55" in error_of(answer).what
    assert not server.asked


def test_results_are_in_order_and_a_failure_affects_no_other_file(server, picture, tmp_path):
    """All eight requests are concurrent: each reply waits until the last request has arrived."""
    arrived = threading.Barrier(8, timeout=20)

    def answering(asked) -> Reply:
        arrived.wait()
        if len(asked.body) % 3 == 0:
            body = b'{"code": 503, "type": "InternalServerException", "message": "Prediction failed"}'
            return Reply(503, body)
        return Reply(200, str(len(asked.body)).encode())

    server.answering = answering
    paths = []
    for size in range(1, 9):
        (path := tmp_path / f"{size}.bin").write_bytes(b"x" * size)
        paths.append(path)
    missing = tmp_path / "missing.png"
    answers = ask(server, [missing, *paths])
    assert [answer.name for answer in answers] == [str(path) for path in [missing, *paths]]
    values = [answer.value if isinstance(answer, Prediction) else None for answer in answers]
    assert values == [None, 1, 2, None, 4, 5, None, 7, 8]
    assert error_of(answers[3]).where == str(paths[2])


def test_the_number_of_concurrent_requests_is_limited(server, tmp_path):
    now, most, lock = 0, 0, threading.Lock()

    def answering(asked) -> Reply:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.01)
        with lock:
            now -= 1
        return Reply(200, b"1")

    server.answering = answering
    (path := tmp_path / "x.bin").write_bytes(b"x")
    assert len(ask(server, [path] * 20, threads=3)) == 20
    assert most <= 3
    assert ask(server, []) == []


def test_requests_without_a_reader_are_not_sent(server, tmp_path):
    (path := tmp_path / "x.bin").write_bytes(b"x")
    server.answering = lambda asked: Reply(200, b"1")
    with Client(Endpoint(server.url), "digits", threads=1) as client:
        answers = client.predict([path] * 500)
        next(answers)
        answers.close()
    assert len(server.asked) < 500


def test_an_unexpected_error_in_a_thread_is_raised(server):
    with Client(Endpoint(server.url), "digits") as client, pytest.raises(AttributeError):
        list(client.predict(["no path"]))  # type: ignore[list-item]


# Failures of the connection


@contextmanager
def listener(answering) -> Iterator[str]:
    """A TCP server: `answering` gets the connection when a whole request has arrived."""
    server = socket.create_server(("127.0.0.1", 0))
    connections = []

    def run() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connections.append(connection)
            connection.recv(65536)
            answering(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)
        for connection in connections:
            connection.close()


def asked_once(url: str, path: Path, timeout: float = 10, **options) -> PredictError:
    with Client(Endpoint(url), "digits", timeout=timeout, patience=patience(never), **options) as client:
        [answer] = client.predict([path])
    return error_of(answer)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_refused_connection_is_retried(picture):
    pauses: list[float] = []
    url = f"http://127.0.0.1:{unused_port()}"
    with Client(Endpoint(url), "digits", patience=patience(pauses.append)) as client:
        [answer] = client.predict([picture])
    error = error_of(answer)
    assert isinstance(error, NotReachedError)
    assert error.what == f"connection refused: {url}"
    assert "kdeploy status" in error.hint
    assert "kdeploy rollout" in error.hint
    assert len(pauses) == Retry().attempts - 1
    assert sum(pauses) < 5


def test_a_server_that_starts_meanwhile_gets_the_request(picture):
    port = unused_port()
    started = []

    def start(seconds: float) -> None:
        server = socket.create_server(("127.0.0.1", port))
        started.append(server)

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n7")

        threading.Thread(target=answer, daemon=True).start()

    with Client(Endpoint(f"http://127.0.0.1:{port}"), "digits", patience=patience(start)) as client:
        [answer] = client.predict([picture])
    started[0].close()
    assert len(started) == 1
    assert answer.value == 7


@pytest.mark.parametrize(
    "said",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", b"SSH-2.0-OpenSSH_9.2\r\n"],
    ids=["no response", "half a response", "not HTTP"],
)
def test_a_request_that_reached_the_server_is_not_retried(picture, said):
    reached = []

    def cut(connection: socket.socket) -> None:
        reached.append(connection)
        connection.sendall(said)
        connection.close()

    with listener(cut) as url:
        error = asked_once(url, picture)
    assert "the connection was closed before" in error.what
    assert "kdeploy logs" in error.hint
    assert len(reached) == 1


def test_an_early_413_is_read_although_the_server_stopped_reading(tmp_path):
    """TorchServe's own response: no body, and the rest of the request is never read."""
    (path := tmp_path / "large.bin").write_bytes(bytes(6_000_000))

    def refuse(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 413 Request Entity Too Large\r\ncontent-length: 0\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    with listener(refuse) as url:
        error = asked_once(url, path)
    assert "HTTP 413: the request has 6000000 bytes, more than the server's own limit" in error.what
    assert "serving.max-request-size" in error.hint


def test_a_server_that_does_not_respond_times_out(picture):
    with listener(lambda connection: None) as url:
        error = asked_once(url, picture, timeout=0.2)
    assert type(error) is PredictError  # it can have reached the model
    assert error.what == f"{url}: no response within 0.2 s"
    assert "--timeout" in error.hint


def test_the_size_of_a_response_is_limited(picture, monkeypatch):
    monkeypatch.setattr(wire, "ANSWER_LIMIT", 1000)

    def talk(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"7" * 5000)

    with listener(talk) as url:
        assert "more than 0 MiB" in asked_once(url, picture).what


def test_a_name_that_cannot_be_resolved_is_an_error(picture):
    error = asked_once("http://no-such-host.invalid:8080", picture)
    assert isinstance(error, NotReachedError)
    assert "http://no-such-host.invalid:8080: cannot resolve the name" in error.what


def test_an_unreachable_address_is_an_error(picture):
    assert "http://255.255.255.255: no connection: " in asked_once("http://255.255.255.255", picture).what


def test_an_address_that_drops_packets_times_out(picture):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        queue = []
        for _ in range(4):
            queue.append(waiting := socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        error = asked_once(f"http://127.0.0.1:{full.getsockname()[1]}", picture, timeout=0.2)
        for waiting in queue:
            waiting.close()
    assert "no connection within 0.2 s" in error.what


def test_a_response_that_cannot_be_decompressed_is_an_error(server, picture):
    server.answering = lambda asked: Reply(200, b"no gzip", {"Content-Encoding": "gzip"})
    [answer] = ask(server, [picture])
    assert "decod" in error_of(answer).what


def test_https_to_an_http_server_is_an_error(picture, server):
    error = asked_once(server.url.replace("http:", "https:"), picture)
    assert "TLS failed" in error.what


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8080", "ftp://a/", "http://", "http://a:b/", "http://[::1", "/x"]
)
def test_an_invalid_address_is_refused(url):
    with pytest.raises(PredictError, match="invalid address"):
        Client(Endpoint(url), "digits")


def test_credentials_in_an_address_are_hidden(picture):
    error = asked_once(f"http://me:{SECRET}@no-such-host.invalid", picture)
    assert SECRET not in str(error)
    assert wire._address("http://[::1]:80/a/", PredictError) == "http://[::1]:80/a"


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": f"Bearer {SECRET}\n"}, {"X": f"{SECRET}\u20ac"}, {"a b": SECRET}],
)
def test_an_invalid_header_is_refused_without_its_value(headers):
    with pytest.raises(PredictError) as caught:
        Client(Endpoint("http://127.0.0.1"), "digits", headers=headers)
    assert SECRET not in str(caught.value)
    assert next(iter(headers)).strip() in caught.value.what


def test_an_error_does_not_contain_the_token(server, picture):
    server.answering = lambda asked: Reply(401, b"")
    [answer] = ask(server, [picture], headers={"Authorization": f"Bearer {SECRET}"})
    error = error_of(answer)
    assert SECRET not in f"{error} {error.hint} {error!r} {error.__cause__!r}"


def test_a_redirect_is_not_followed(server, picture):
    server.answering = lambda asked: Reply(302, b"", {"Location": f"{server.url}/dex/auth?client_id=x"})
    [answer] = ask(server, [picture], "v1")
    error = error_of(answer)
    assert "HTTP 302: redirected to the login page" in error.what
    assert "client_id" not in error.what
    assert "--cookie authservice_session=@" in error.hint
    assert len(server.asked) == 1


def test_a_login_page_with_status_200_is_an_error(server, picture):
    page = b"<!doctype html><html><title>Log in to Your Account</title></html>"
    server.answering = lambda asked: Reply(200, page, {"Content-Type": "text/html; charset=utf-8"})
    for protocol in ("plain", "v1", "v2"):
        [answer] = ask(server, [picture], protocol)
        assert "login page" in error_of(answer).what


def test_ctrl_c_ends_a_request_without_a_response(picture):
    arrived = threading.Event()
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from deployer.predict import Client; from deployer.targets.protocols import Endpoint\n"
        "client = Client(Endpoint(sys.argv[2]), 'digits', timeout=600)\n"
        "list(client.predict([pathlib.Path(sys.argv[3])] * 3))\n"
    )
    with listener(lambda connection: arrived.set()) as url:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(ROOT), url, str(picture)], stderr=subprocess.PIPE
        )
        try:
            assert arrived.wait(30)
            child.send_signal(signal.SIGINT)
            _, complaint = child.communicate(timeout=30)
        finally:
            child.kill()
            child.wait()
    assert b"KeyboardInterrupt" in complaint
    assert b"Fatal" not in complaint


def test_importing_the_package_loads_no_heavy_library():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import deployer.predict\n"
        "heavy = {'urllib3', 'PIL', 'http', 'ssl', 'asyncio', 'numpy', 'concurrent'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or None)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(ROOT)], check=False, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")
