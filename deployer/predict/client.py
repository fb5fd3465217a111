"""Asks a served model for predictions, several files at once, each with an answer or an error of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, TypeVar, cast, get_args

from msgspec import Struct

from deployer.config import Serving
from deployer.errors import ConfigError, PredictError
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
    """What the model says of one file; `resized` where a smaller picture was sent in its place."""

    name: str
    value: Any
    milliseconds: float
    resized: Resized | None = None


class Failure(Struct, frozen=True, kw_only=True):
    """Why there is no prediction for one file; no `milliseconds` where it was never sent."""

    name: str
    error: PredictError
    milliseconds: float | None = None
    resized: Resized | None = None


class Client:
    """Asks one model at one endpoint. Safe to share by threads; close it, or use it in a `with`."""

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections."""
        self._connection.close()

    def predict(self, paths: Sequence[Path], protocol: Protocol = "plain") -> Iterator[Prediction | Failure]:
        """Ask for every file, some at a time, and yield what came of each, in the order of the files."""
        return _in_order(partial(self._predict_one, protocol), paths, self._threads)

    def ask(self, request: Request) -> list[Any]:
        """Send one request and return its predictions, one a row. Raises PredictError."""
        answer = self._connection.send(
            "POST", request.path, body=request.body, content_type=request.content_type
        )
        if not 200 <= answer.status < 300:
            asked = Asked(self._model, self._host, len(request.body), self._limit)
            raise explain(answer.status, *self._connection.fit_to_quote(answer), asked)
        return codecs.decode(request, answer.body, answer.headers.get("content-type", ""))

    def prepare(self, path: Path, protocol: Protocol) -> tuple[Request, Resized | None]:
        """Make the request for one file, within the size limit; say if the picture in it is a smaller one."""
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


def predict_files(
    endpoint: Endpoint,
    model: str,
    paths: Sequence[Path],
    *,
    protocol: str = "plain",
    timeout: float = TIMEOUT,
    headers: Mapping[str, str] | None = None,
    max_request_size: int = MAX_REQUEST_SIZE,
    resize: bool = False,
    authority: Path | None = None,
) -> Iterator[Prediction | Failure]:
    """Ask a model about files, some at a time, and yield what came of each, in the order of the files.

    `timeout` is in seconds, for each file's request and answer; `authority` is a PEM file of certificates to
    trust. Raises ConfigError for an unknown protocol, and a proxy or such a file that cannot be used;
    PredictError for an invalid endpoint or header.
    """
    known = get_args(Protocol)
    if protocol not in known:
        raise ConfigError(
            f"there is no protocol {protocol}", where="--protocol", hint=f"there are {', '.join(known)}"
        )
    client = Client(
        endpoint,
        model,
        timeout=timeout,
        headers=headers,
        max_request_size=max_request_size,
        resize=resize,
        authority=authority,
    )
    return client.predict(paths, cast("Protocol", protocol))


def _in_order(work: Callable[[T], U], items: Sequence[T], threads: int) -> Iterator[U]:
    """Do the work of all items on some threads; yield the results in order, each as soon as it can be.

    The threads are daemons, unlike an executor's: Ctrl-C ends the command though a server never answers.
    """
    jobs = [(item, SimpleQueue[tuple[U | None, BaseException | None]]()) for item in items]
    waiting = iter(jobs)
    taking = threading.Lock()

    def run() -> None:
        while True:
            with taking:
                job = next(waiting, None)
            if job is None:
                return
            item, outcome = job
            try:
                outcome.put((work(item), None))
            except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for it
                outcome.put((None, error))

    for _ in range(min(threads, len(jobs))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _, outcome in jobs:
            result, error = _wait_for(outcome)
            if error is not None:
                raise error
            yield cast("U", result)
    finally:
        with taking:  # nobody waits any more: what was not begun is not sent
            for _ in waiting:
                pass


def _wait_for(outcome: SimpleQueue[T]) -> T:
    """Take what comes, and look up in between: Python overlooks a Ctrl-C just before it begins to wait."""
    while True:
        with suppress(Empty):
            return outcome.get(timeout=0.5)
