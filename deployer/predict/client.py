"""Sends prediction requests, several files at once; each file gets its own answer or error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from msgspec import Struct

from deployer.config import Serving
from deployer.errors import PredictError
from deployer.patience import PATIENCE, Patience
from deployer.predict import codecs
from deployer.predict.codecs import JSON, Payload, Protocol, Request
from deployer.predict.connection import Connection
from deployer.predict.images import RAISE_LIMIT, Resized, fit_image, read_file
from deployer.predict.predict_errors import Asked, explain
from deployer.targets.protocols import Endpoint

THREADS = 8
MAX_REQUEST_SIZE = Serving().max_request_size  # bytes
TIMEOUT = 60.0  # seconds; first predictions on a cold worker are slow

T = TypeVar("T")
U = TypeVar("U")


class Prediction(Struct, frozen=True, kw_only=True):
    """The answer for one file; `resized` if a smaller picture was sent in its place."""

    name: str
    value: Any
    milliseconds: float
    resized: Resized | None = None


class Failure(Struct, frozen=True, kw_only=True):
    """Why one file has no prediction; `milliseconds` is None if it was not sent."""

    name: str
    error: PredictError
    milliseconds: float | None = None
    resized: Resized | None = None


class Client:
    """Sends requests to one model at one endpoint. Threads may share it; close it, or use it in a `with`.

    `timeout` is in seconds, for a request and its whole answer; `max_request_size` is in bytes; `authority`
    is a PEM file of certificates to trust. Raises ConfigError for a proxy or such a file that cannot be used,
    PredictError for an invalid endpoint or header.
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
        self._connection = Connection(
            endpoint,
            failure=PredictError,
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

    def predict(self, paths: Sequence[Path], protocol: Protocol = "plain") -> Iterator[Prediction | Failure]:
        """Send every file, several at once, and yield the answers in the order of the files."""
        return _in_order(partial(self._predict_one, protocol), paths, self._threads)

    def ask(self, request: Request) -> list[Any]:
        """Send one request and return its predictions, one per row. Raises PredictError."""
        answer = self._connection.send(
            "POST", request.path, body=request.body, content_type=request.content_type
        )
        if not 200 <= answer.status < 300:
            asked = Asked(self._model, self._host, len(request.body), self._limit)
            raise explain(answer.status, *self._connection.fit_to_quote(answer), asked)
        return codecs.decode(request, answer.body, answer.headers.get("content-type", ""))

    def prepare(self, path: Path, protocol: Protocol) -> tuple[Request, Resized | None]:
        """Make the request for one file, within the size limit, and say how its picture was resized."""
        if path.suffix.lower() == ".json":
            payload, resized = Payload(read_file(path, self._limit), JSON), None
        else:
            fitted = fit_image(
                path,
                self._limit,
                request_size=partial(codecs.request_size, protocol),
                resize=self._resize,
            )
            payload, resized = Payload(fitted.data, fitted.content_type), fitted.resized
        request = codecs.encode(protocol, self._model, [payload])
        if len(request.body) > self._limit:
            raise PredictError(
                f"the request would have {len(request.body)} bytes, the limit is {self._limit}",
                hint=RAISE_LIMIT,
            )
        return request, resized

    def _predict_one(self, protocol: Protocol, path: Path) -> Prediction | Failure:
        resized, started = None, None
        try:
            request, resized = self.prepare(path, protocol)
            started = self._clock.now()
            values = self.ask(request)
        except PredictError as error:
            error.where = error.where or path.name
            spent = None if started is None else 1e3 * (self._clock.now() - started)
            return Failure(name=str(path), error=error, milliseconds=spent, resized=resized)
        return Prediction(
            name=str(path),
            value=values if request.whole else values[0],
            milliseconds=1e3 * (self._clock.now() - started),
            resized=resized,
        )


def _in_order(work: Callable[[T], U], items: Sequence[T], threads: int) -> Iterator[U]:
    """Do the work of all items on some threads; yield the results in order, each as soon as it is there.

    The threads are daemons, unlike an executor's: Ctrl-C ends the command though a server never answers.
    """
    from concurrent.futures import Future, wait

    jobs = [(item, Future[U]()) for item in items]
    waiting = iter(jobs)
    lock = threading.Lock()

    def run() -> None:
        while True:
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            item, future = job
            try:
                future.set_result(work(item))
            except BaseException as error:  # noqa: BLE001 - raised again where the result is read
                future.set_exception(error)

    for _ in range(min(threads, len(jobs))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _, future in jobs:
            while not future.done():  # Python overlooks a Ctrl-C just before it begins to wait
                wait([future], timeout=0.5)
            yield future.result()
    finally:
        with lock:  # the results have no reader any more: send no further requests
            for _ in waiting:
                pass
