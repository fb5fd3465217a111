"""Sends prediction requests, several files at a time; each file gets its own prediction or error."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from deployer.config import Serving
from deployer.errors import NotReachedError, PredictError
from deployer.patience import PATIENCE, Patience
from deployer.predict import answers, codecs, content, inputs
from deployer.predict.codecs import Protocol, Request
from deployer.predict.connection import Connection
from deployer.predict.grpc_connection import GrpcConnection
from deployer.predict.images import RAISE_LIMIT, FittedImage, Resized, fit_image, read_file, read_start
from deployer.predict.inputs import Input
from deployer.predict.predict_errors import SentRequest, explain
from deployer.targets.protocols import Endpoint

THREADS = 8
MAX_REQUEST_SIZE = Serving().max_request_size  # bytes
TIMEOUT = 60.0  # seconds; first predictions on a cold worker are slow

T = TypeVar("T")
U = TypeVar("U")


class Prediction(Struct, frozen=True, kw_only=True):
    """The prediction for one input; `resized` if a smaller image was sent instead.

    `value` is JSON, text, or bytes that are neither.
    """

    name: str
    value: Any
    milliseconds: float
    resized: Resized | None = None


class Failure(Struct, frozen=True, kw_only=True):
    """Why one input has no prediction; `milliseconds` is None if it was not sent."""

    name: str
    error: PredictError
    milliseconds: float | None = None
    resized: Resized | None = None


class Client:
    """Sends requests to one model at one endpoint. Threads can share it; close it, or use it in a `with`.

    `timeout` is in seconds, for a request and its whole response; `max_request_size` is in bytes; `authority`
    is a PEM file of certificates to trust. Raises ConfigError if that file or the proxy is invalid,
    PredictError if the endpoint or a header is.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        *,
        timeout: float = TIMEOUT,
        headers: Mapping[str, str] | None = None,
        max_request_size: int = MAX_REQUEST_SIZE,
        resize: bool = False,
        threads: int = THREADS,
        authority: Path | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        self._model = model
        self._host = endpoint.host
        self._limit = max_request_size
        self._resize = resize
        self._threads = threads
        self._clock = patience.clock
        self._open_grpc = partial(
            GrpcConnection, endpoint, timeout=timeout, headers=headers or {}, authority=authority
        )
        self._grpc: GrpcConnection | None = None
        self._connection = Connection(
            endpoint,
            failure=PredictError,
            unreached=NotReachedError,
            timeout=timeout,
            headers=headers,
            connections=threads,
            authority=authority,
            patience=patience,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections."""
        self._connection.close()
        if self._grpc:
            self._grpc.close()

    def predict(
        self,
        files: Iterable[Path | Input],
        protocol: Protocol = "plain",
        *,
        follow: bool = False,
        explain: bool = False,
    ) -> Iterator[Prediction | Failure]:
        """Send every file, several at a time, and yield the results in the order of the files.

        Each line of a `.jsonl` file is an input. With `follow`, an input that is a V1 or V2 request is sent
        by its protocol. With `explain`, request explanations. Raises ConfigError if gRPC is not installed.
        """

        def encode(fitted: FittedImage) -> Request:
            own = codecs.own_protocol(fitted.data, fitted.content_type) if follow else None
            return codecs.encode(
                own or protocol, self._model, fitted.data, fitted.content_type, explain=explain
            )

        if protocol == "grpc-v2":
            self._grpc = self._grpc or self._open_grpc()
        work = partial(self._predict_one, protocol, encode)
        return _in_order(work, inputs.expand(files), self._threads)

    def ask(self, request: Request) -> Any:
        """Send one request and return its prediction. Raises PredictError."""
        if self._grpc and request.protocol == "grpc-v2":
            return answers.decode(request, self._grpc.infer(self._model, request.body))
        response = self._connection.send(
            "POST", request.path, body=request.body, content_type=request.content_type
        )
        if not 200 <= response.status < 300:
            sent = SentRequest(
                self._model,
                self._host,
                len(request.body),
                self._limit,
                request.protocol,
                request.content_type,
            )
            raise explain(response.status, *self._connection.without_secrets(response), sent)
        return answers.decode(request, response.body, response.headers.get("content-type", ""))

    def _fit(self, given: Input, protocol: Protocol) -> FittedImage:
        """Read an input within the size limit; with `resize`, shrink an image that exceeds it."""
        content_type = given.content.content_type if given.content else ""
        if given.path and not content.is_text(given.path.name):
            content_type = content.sniff(read_start(given.path))
        if content_type.startswith("image/"):
            source = given.path or (given.content.data if given.content else b"")
            size = partial(codecs.request_size, protocol)
            return fit_image(source, self._limit, name=given.name, request_size=size, resize=self._resize)
        if given.content:
            return given.content
        assert given.path
        return FittedImage(*content.identify(given.path.name, read_file(given.path, self._limit)))

    def _predict_one(
        self, protocol: Protocol, encode: Callable[[FittedImage], Request], given: Input
    ) -> Prediction | Failure:
        resized, started = None, None
        try:
            fitted = self._fit(given, protocol)
            resized, request = fitted.resized, encode(fitted)
            if len(request.body) > self._limit:
                raise PredictError(
                    f"too large: the request has {len(request.body)} bytes, the limit is {self._limit}",
                    hint=RAISE_LIMIT,
                )
            started = self._clock.now()
            value = self.ask(request)
        except PredictError as error:
            error.where = error.where or given.name
            spent = None if started is None else 1e3 * (self._clock.now() - started)
            return Failure(name=given.name, error=error, milliseconds=spent, resized=resized)
        return Prediction(
            name=given.name,
            value=value,
            milliseconds=1e3 * (self._clock.now() - started),
            resized=resized,
        )


def _in_order(work: Callable[[T], U], items: Sequence[T], threads: int) -> Iterator[U]:
    """Do the work of all items on some threads; yield the results in order, each as soon as it is ready.

    The threads are daemons, unlike an executor's: Ctrl-C ends the command even if a server never responds.
    """
    from concurrent.futures import Future, wait

    futures = [Future[U]() for _ in items]
    waiting = deque(zip(items, futures, strict=True))

    def run() -> None:
        while True:
            try:
                item, future = waiting.popleft()
            except IndexError:
                return
            try:
                future.set_result(work(item))
            except BaseException as error:  # noqa: BLE001 - raised again where the result is read
                future.set_exception(error)

    for _ in range(min(threads, len(items))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for future in futures:
            while not future.done():  # Python misses a Ctrl-C just before a wait without a limit
                wait([future], timeout=0.5)
            yield future.result()
    finally:
        waiting.clear()  # nothing reads further results
