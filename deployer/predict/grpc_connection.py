"""Sends V2 requests in gRPC, with the messages of KServe's SDK, which the extra `kserve` installs."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deployer.errors import ConfigError, InputRefusedError, NotReachedError, PredictError
from deployer.predict.connection import ANSWER_LIMIT, server_name_of
from deployer.proxies import find_proxy, tls_context
from deployer.targets.protocols import Endpoint

_PORTS = {"http": 80, "https": 443}
# The kind of error for each status code of gRPC, and the hint.
_FAILURES: dict[str, tuple[type[PredictError], str]] = {
    "INVALID_ARGUMENT": (InputRefusedError, "Compare it with the input that the handler expects."),
    "OUT_OF_RANGE": (InputRefusedError, "Compare it with the input that the handler expects."),
    "RESOURCE_EXHAUSTED": (InputRefusedError, "Raise `serving.max-request-size`, or send less."),
    "DEADLINE_EXCEEDED": (PredictError, "Raise `--timeout`, or run `kdeploy logs` to see the workers."),
    "UNAVAILABLE": (NotReachedError, "Run `kdeploy status` and compare the address."),
    "UNAUTHENTICATED": (NotReachedError, "Pass a token: `--token @FILE`, or KDEPLOY_TOKEN."),
    "PERMISSION_DENIED": (NotReachedError, "Pass the token of an account with access: `--token @FILE`."),
    "NOT_FOUND": (NotReachedError, "The model must have the name of the InferenceService."),
    "UNIMPLEMENTED": (NotReachedError, 'Set `serving.protocol-version = "grpc-v2"` and roll out.'),
}


class GrpcConnection:
    """A channel to one endpoint. Threads can share it.

    Raises ConfigError without the extra, and for an endpoint that gRPC cannot use.
    """

    def __init__(
        self, endpoint: Endpoint, *, timeout: float, headers: Mapping[str, str], authority: Path | None
    ) -> None:
        try:
            import grpc
            from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
        except ImportError as error:
            what = f"gRPC needs KServe's SDK: {error}"
            hint = "Run `pip install 'kdeploy[kserve]'`."
            raise ConfigError(what, where="--protocol grpc-v2", hint=hint) from error
        parts = urlsplit(endpoint.url)
        refused = (
            "a port-forward" if endpoint.tunnel else "a URL with a path" if parts.path.strip("/") else ""
        )
        if refused:
            raise ConfigError(
                f"gRPC cannot use {refused}",
                where="--protocol grpc-v2",
                hint="Name the ingress with `--ingress https://ADDRESS`, or use `--protocol v2`.",
            )
        self._address = f"{parts.hostname}:{parts.port or _PORTS[parts.scheme]}"
        if ":" in (parts.hostname or ""):
            self._address = f"[{parts.hostname}]:{parts.port or _PORTS[parts.scheme]}"
        self._timeout = timeout
        self._metadata = [(name.lower(), value) for name, value in headers.items()]
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", ANSWER_LIMIT),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", int(find_proxy(endpoint.url) is not None)),
        ]
        if endpoint.host:
            options.append(("grpc.default_authority", endpoint.host))
        if parts.scheme == "https":
            if name := server_name_of(endpoint):
                options.append(("grpc.ssl_target_name_override", name))
            trusted = grpc.ssl_channel_credentials(_bundle(authority))
            self._channel = grpc.secure_channel(self._address, trusted, options)
        else:
            self._channel = grpc.insecure_channel(self._address, options)
        self._stub = GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def infer(self, model: str, body: bytes) -> bytes:
        """Send a V2 request in JSON and return the response in JSON. Raises PredictError."""
        import grpc

        message = _message(model, json.loads(body))
        try:
            answer = self._stub.ModelInfer(message, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            status, details = error.code().name, " ".join((error.details() or "").split())
            kind, hint = _FAILURES.get(status, (PredictError, "Run `kdeploy logs` to see its traceback."))
            raise kind(f"{self._address}: gRPC {status}: {details}", hint=hint) from error
        return _to_json(answer)


def _bundle(authority: Path | None) -> bytes | None:
    """Return the certificates that kdeploy trusts, since gRPC has its own; None if they are not listed."""
    import ssl

    trusted = tls_context(authority).get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, trusted)).encode() or None


def _message(model: str, document: Mapping[str, Any]) -> Any:
    """Return the message for a V2 request in JSON. Raises InputRefusedError if gRPC cannot carry it."""
    from kserve import InferInput, InferRequest
    from kserve.errors import InvalidInput

    try:
        inputs = [
            InferInput(one["name"], one["shape"], one["datatype"], _flat(one["data"]), one.get("parameters"))
            for one in document["inputs"]
        ]
        request = InferRequest(
            model, inputs, request_id=document.get("id"), parameters=document.get("parameters")
        )
        return request.to_grpc()
    except (InvalidInput, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        missing = f"a tensor has no {error}" if isinstance(error, KeyError) else str(error)
        what = f"gRPC cannot carry this request: {missing}"
        hint = "Write each tensor with name, shape, datatype and data. FP16 and BF16 need `--protocol v2`."
        raise InputRefusedError(what, hint=hint) from error


def _flat(data: Any) -> list[Any]:
    values = data if isinstance(data, list) else [data]
    while values and all(isinstance(value, list) for value in values):
        values = list(chain.from_iterable(values))
    return values


def _to_json(answer: Any) -> bytes:
    """Return a response as V2's JSON. Bytes that are not UTF-8 become base64."""
    from kserve import InferResponse

    outputs = []
    for output in InferResponse.from_grpc(answer).outputs:
        raw = answer.raw_output_contents
        values = output.as_numpy().reshape(-1).tolist() if raw else output.data
        outputs.append(
            {
                "name": output.name,
                "shape": list(output.shape),
                "datatype": output.datatype,
                "data": [_text(value) for value in values],
            }
        )
    return json.dumps({"model_name": answer.model_name, "outputs": outputs}).encode()


def _text(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()
