"""`kdeploy predict --protocol grpc-v2`, with a server of KServe's own messages on loopback."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from deployer.errors import ConfigError, InputRefusedError, NotReachedError, PredictError
from deployer.predict import Client, Failure, Prediction
from deployer.targets.protocols import Endpoint

HOST = "digits.team.example.com"
Answering = Callable[[Any, grpc.ServicerContext], Any]


def echo(request: Any, _context: grpc.ServicerContext) -> Any:
    """Answer with the model's name and the first input."""
    [tensor, *_] = request.inputs
    return messages.ModelInferResponse(model_name=request.model_name, outputs=[tensor_of(tensor)])


def tensor_of(tensor: Any) -> Any:
    return messages.ModelInferResponse.InferOutputTensor(
        name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, contents=tensor.contents
    )


@contextmanager
def serving(answering: Answering, tls: grpc.ServerCredentials | None = None) -> Iterator[int]:
    class Servicer(GRPCInferenceServiceServicer):
        def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
            return answering(request, context)

    server = grpc.server(ThreadPoolExecutor(4))
    add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    port = server.add_secure_port("127.0.0.1:0", tls) if tls else server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


def ask(url: str, path: Path, host: str | None = None, **options: Any) -> Prediction | Failure:
    with Client(Endpoint(url, host), "digits", timeout=10, **options) as client:
        [answer] = client.predict([path], "grpc-v2")
    return answer


def value(url: str, path: Path, host: str | None = None, **options: Any) -> Any:
    answer = ask(url, path, host, **options)
    assert isinstance(answer, Prediction), answer.error
    return answer.value


@pytest.fixture
def request_file(tmp_path: Path) -> Callable[[Any], Path]:
    def write(document: Any) -> Path:
        (path := tmp_path / "request.json").write_text(json.dumps(document))
        return path

    return write


def test_each_kind_of_input_is_sent_as_in_v2(tmp_path: Path, request_file: Callable[[Any], Path]) -> None:
    (text := tmp_path / "t.txt").write_text("très bien")
    (picture := tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    with serving(echo) as port:
        url = f"http://127.0.0.1:{port}"
        assert value(url, text) == "très bien"
        assert value(url, picture) == base64.b64encode(picture.read_bytes()).decode()
        assert value(url, request_file({"x": 1})) == {"x": 1}


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [2, 2], [[0.5, 1], [1.5, 2]]),
        ("FP64", [3], [1, 2, 3]),
        ("INT8", [1, 2], [[-1, 1]]),
        ("INT64", [2], [2**62, -1]),
        ("UINT64", [1], [2**63]),
        ("BOOL", [2], [True, False]),
        ("BYTES", [2], ["a", "ü"]),
    ],
)
def test_a_v2_request_is_sent_as_it_is(
    request_file: Callable[[Any], Path], datatype: str, shape: list[int], data: list[Any]
) -> None:
    tensor = {"name": "x", "shape": shape, "datatype": datatype, "data": data}
    with serving(echo) as port:
        assert value(f"http://127.0.0.1:{port}", request_file({"id": "7", "inputs": [tensor]})) == data


def test_raw_contents_of_a_response_are_read(tmp_path: Path) -> None:
    import struct

    def raw(_request: Any, _context: grpc.ServicerContext) -> Any:
        output = {"name": "y", "datatype": "FP32", "shape": [1, 2]}
        return messages.ModelInferResponse(outputs=[output], raw_output_contents=[struct.pack("<2f", 1, 2.5)])

    (text := tmp_path / "t.txt").write_text("x")
    with serving(raw) as port:
        assert value(f"http://127.0.0.1:{port}", text) == [1, 2.5]


def test_the_host_and_the_headers_are_sent(tmp_path: Path) -> None:
    seen: dict[str, str] = {}

    def remember(request: Any, context: grpc.ServicerContext) -> Any:
        seen.update(dict(context.invocation_metadata()), model=request.model_name)
        return echo(request, context)

    (text := tmp_path / "t.txt").write_text("x")
    with serving(remember) as port:
        value(f"http://127.0.0.1:{port}", text, HOST, headers={"Authorization": "Bearer x"})
    assert seen["authorization"] == "Bearer x"
    assert seen["model"] == "digits"


def test_a_gateway_is_verified_by_the_host_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair = authority.issue_cert(HOST)
    chain = b"".join(blob.bytes() for blob in pair.cert_chain_pems)
    tls = grpc.ssl_server_credentials([(pair.private_key_pem.bytes(), chain)])
    (text := tmp_path / "t.txt").write_text("x")
    with serving(echo, tls) as port:
        url = f"https://127.0.0.1:{port}"
        assert value(url, text, HOST, authority=tmp_path / "ca.pem") == "x"
        untrusted = ask(url, text, HOST)
        assert isinstance(untrusted, Failure)
        assert isinstance(untrusted.error, NotReachedError)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert value(url, text, HOST) == "x"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InputRefusedError),
        (grpc.StatusCode.UNAVAILABLE, NotReachedError),
        (grpc.StatusCode.UNIMPLEMENTED, NotReachedError),
        (grpc.StatusCode.INTERNAL, PredictError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, PredictError),
    ],
)
def test_the_kind_of_an_error_follows_its_code(
    tmp_path: Path, code: grpc.StatusCode, kind: type[PredictError]
) -> None:
    def fail(_request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(code, "because")

    (text := tmp_path / "t.txt").write_text("x")
    with serving(fail) as port:
        answer = ask(f"http://127.0.0.1:{port}", text)
    assert isinstance(answer, Failure)
    assert type(answer.error) is kind
    assert f"gRPC {code.name}: because" in answer.error.what
    assert answer.error.hint


def test_a_proxy_is_not_used_for_loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (text := tmp_path / "t.txt").write_text("x")
    with serving(echo) as port:
        assert value(f"http://127.0.0.1:{port}", text) == "x"


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "x", "shape": [1], "datatype": "FP16", "data": [1]},
        {"name": "x", "shape": [1], "datatype": "FP32"},
        {"name": "x", "shape": [1], "datatype": "FP32", "data": ["a"]},
        {"name": "x", "shape": [1], "datatype": "INT8", "data": [2**70]},
        {"name": "x", "shape": "a", "datatype": "INT8", "data": [1]},
    ],
)
def test_what_grpc_cannot_carry_is_refused(request_file: Callable[[Any], Path], tensor: Any) -> None:
    answer = ask("http://127.0.0.1:9", request_file({"inputs": [tensor]}))
    assert isinstance(answer, Failure)
    assert isinstance(answer.error, InputRefusedError)
    assert answer.error.what.startswith("gRPC cannot carry this request: ")


def test_explanations_and_paths_and_port_forwards_are_refused(tmp_path: Path) -> None:
    (text := tmp_path / "t.txt").write_text("x")
    with Client(Endpoint("http://127.0.0.1:9"), "digits") as client:
        [answer] = client.predict([text], "grpc-v2", explain=True)
        assert isinstance(answer, Failure)
        assert answer.error.what == "gRPC has no explanations"
    with pytest.raises(ConfigError, match="gRPC cannot use a URL with a path"):
        ask("http://127.0.0.1:9/serving/team", text)


def test_without_the_sdk_the_hint_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "kserve.protocol.grpc.grpc_predict_v2_pb2_grpc", None)
    with pytest.raises(ConfigError, match="gRPC needs KServe's SDK") as caught:
        ask("http://127.0.0.1:9", tmp_path / "t.txt")
    assert "pip install 'kdeploy[kserve]'" in str(caught.value.hint)
