"""V2 in gRPC: a server before the front, for InferenceServices with the protocol version grpc-v2.

TorchServe has V2 in gRPC, too, but under another service name, which no client of KServe or Triton calls. So
each request becomes one in REST to the front: batches, limits, errors and the drain are the same. This needs
grpcio, which every image with KServe's Python package has.
"""

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor

from manifests.grpc_messages import HEADER_LENGTH, BadRequestError, load_messages, to_grpc, to_rest

THREADS = 64  # requests in flight
SERVING, NOT_SERVING = 1, 2  # of the gRPC health protocol

_CODES = {404: "NOT_FOUND", 413: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}


class GrpcFront:
    """A gRPC server that answers with what the front at `port` answers."""

    def __init__(self, address, port, status, limits):
        """Listen on an address. `limits` are the most bytes of a request and of a response.

        Raises ImportError without grpcio or protobuf, and OSError if the address is taken.
        """
        import grpc

        self._grpc, self._messages = grpc, load_messages()
        self._port, self._status = port, status
        self._local = threading.local()
        received, sent = limits
        options = [
            ("grpc.max_receive_message_length", received),
            ("grpc.max_send_message_length", sent),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.server(ThreadPoolExecutor(THREADS), options=options)
        methods = {
            "ServerLive": (self._live, "Nothing"),
            "ServerReady": (self._ready, "Nothing"),
            "ModelReady": (self._model_ready, "Named"),
            "ServerMetadata": (self._server_metadata, "Nothing"),
            "ModelMetadata": (self._model_metadata, "Named"),
            "ModelInfer": (self._infer, "InferRequest"),
        }
        self._add("inference.GRPCInferenceService", methods)
        self._add("grpc.health.v1.Health", {"Check": (self._check, "Named")})
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        if not bound:
            raise OSError(f"cannot listen on {address}")
        self._server.start()

    def close(self, grace):
        """Accept no more requests, and wait up to `grace` seconds for those in flight."""
        self._server.stop(grace).wait()

    def _add(self, service, methods):
        handlers = {
            name: self._grpc.unary_unary_rpc_method_handler(
                answer,
                request_deserializer=self._messages[request].FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, (answer, request) in methods.items()
        }
        handler = self._grpc.method_handlers_generic_handler(service, handlers)
        self._server.add_generic_rpc_handlers((handler,))

    def _live(self, _request, _context):
        return self._messages["Yes"](yes=True)

    def _ready(self, _request, _context):
        return self._messages["Yes"](yes=not self._status.look())

    def _check(self, request, context):
        if request.name:
            self._get(f"/v2/models/{request.name}", context)
        return self._messages["Health"](status=NOT_SERVING if self._status.look() else SERVING)

    def _model_ready(self, request, context):
        self._get(_path(request), context)
        return self._ready(request, context)

    def _server_metadata(self, _request, context):
        return self._messages["ServerMetadata"](**self._get("/v2", context))

    def _model_metadata(self, request, context):
        found = self._get(_path(request), context)
        named = {key: found[key] for key in ("name", "versions", "platform")}
        return self._messages["ModelMetadata"](**named)

    def _infer(self, request, context):
        try:
            body, json_size = to_rest(request)
            headers = {"Content-Type": "application/octet-stream" if json_size else "application/json"}
            if json_size:
                headers[HEADER_LENGTH] = str(json_size)
            path = f"/v2/models/{request.model_name}/infer"
            answer, data = self._send("POST", path, body, headers, context)
            size = answer.getheader(HEADER_LENGTH)
            return to_grpc(self._messages, data, int(size) if size else None)
        except BadRequestError as error:
            return context.abort(self._grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def _get(self, path, context):
        return json.loads(self._send("GET", path, None, {}, context)[1])

    def _send(self, method, path, body, headers, context):
        """Send a request to the front. Return its response and the body; abort the call for an error."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return context.abort(self._grpc.StatusCode.UNAVAILABLE, f"the server ended the request: {error}")
        if answer.status != 200:
            return context.abort(getattr(self._grpc.StatusCode, _code(answer.status)), _message(data))
        return answer, data


def _code(status):
    """Return the code of gRPC for an HTTP status. A handler refuses an input with 400 to 499."""
    return _CODES.get(status, "INVALID_ARGUMENT" if 400 <= status < 500 else "INTERNAL")


def _path(request):
    return f"/v2/models/{request.name}" + (f"/versions/{request.version}" if request.version else "")


def _message(data):
    """Return the text of an error in JSON, of the adapter or of TorchServe."""
    try:
        document = json.loads(data)
        return str(document.get("error") or document.get("message"))
    except (ValueError, AttributeError):
        return data.decode("utf-8", "replace")[:1000]
