"""Calls the user's handler once for the rows of a whole batch. If the call fails, finds the bad rows.

A failed call is divided: each half of its rows gets its own call, and so on, until each bad row has its own.
k bad rows among n cost about 2·k·log2(n) more calls, and never more than 2·n in all. A request fails with its
first bad row; its other rows get no more calls. Division ends after half of TorchServe's response-timeout,
before TorchServe kills the worker: the remaining rows then fail with the error of the batch.

The changes of a failed call are undone before the next one: rows are passed as fresh copies, and statuses and
headers are reset. State inside the handler is not undone.
"""

import logging
import sys
import time
from typing import NamedTuple

from kdeploy_streams import STREAMING, Pieces

logger = logging.getLogger("kdeploy_handler")


class WrongCountError(ValueError):
    """The handler did not give one answer for each row."""

    def __init__(self, answers, count):
        given = f"a list of {len(answers)}" if isinstance(answers, list) else type(answers).__name__
        super().__init__(f"the handler returned {given} for {count} row(s), not a list of {count}")
        self.as_for_one_row = not isinstance(answers, list) or len(answers) == 1


class Failure(NamedTuple):
    """The result of a failed call: an HTTP status, a message for the client, and the error's class."""

    status: int
    message: str
    kind: type


class Batcher:
    """Calls one handler, `entry(data, context)`. `timeout`: TorchServe's response-timeout in seconds."""

    def __init__(self, entry, timeout, clock=time.monotonic):
        self.entry = entry
        self.limit = timeout / 2
        self.clock = clock
        self.one_row = False
        self._warned = set()

    def run(self, requests, context):
        """Set a value for each row of every request, or the request's failure."""
        joined = [request for request in requests if not (request.separate or request.whole)]
        joined = [] if self.one_row else joined
        if sum(len(request.rows) for request in joined) > 1:  # a single row gets no second call
            joined = [request for request in joined if request.keep_copies()]
        together = set(joined)
        calls = [[(request, row) for request in joined for row in range(len(request.rows))]]
        for request in requests:
            if request not in together:
                rows = [(request, row) for row in range(len(request.rows))]
                calls += [rows] if request.whole else [[row] for row in rows]
        self._detect_one_row_handler(self._divide(calls, context))

    def _divide(self, calls, context):
        """Make the calls in order, and divide those that fail. Return (size, failure) of every call."""
        made, deadline = [], self.clock() + self.limit
        waiting = [(rows, None) for rows in reversed(calls)]
        while waiting:
            rows, failure = waiting.pop()
            if made:
                rows = [(request, row) for request, row in rows if not request.failure]
            if failure and rows and self.clock() >= deadline:
                self._give_up(rows, failure)
            elif rows:
                found, parts = self._try(rows, context, again=failure is not None)
                made.append((1 if rows[0][0].whole else len(rows), found))
                waiting += [(part, found) for part in reversed(parts)]
        return made

    def _try(self, rows, context, again):
        """Make one call. Return its failure, if any, and the parts of its rows to call again."""
        try:
            answers = self._call(rows, context, again)
        except (Exception, SystemExit) as error:  # handlers can call a program's main(), which exits
            processors = context.request_processor
            if all(map(is_streaming, processors)) or device_is_lost(context):
                raise  # all requests fail: TorchServe ends the streams, or answers 507
            failure, indivisible = explain(error), len(rows) == 1 or rows[0][0].whole
            if indivisible:
                level = logging.DEBUG if rows[0][0].is_trial else logging.WARNING
                logger.log(level, "Row %d of a request failed", rows[0][1], exc_info=True)
            elif failure.kind is not WrongCountError:
                self._warn(failure, exc_info=True)
            for request, row in rows:  # a streamed answer cannot be undone
                if not request.failure and (indivisible or is_streaming(processors[request.index])):
                    request.fail(failure, row)
            return failure, [] if indivisible else _parts(rows, getattr(error, "as_for_one_row", False))
        if len(rows) == 1:
            rows[0][0].values.extend(answers)
        else:
            for (request, _), answer in zip(rows, answers):
                request.values.append(answer)
        return None, []

    def _call(self, rows, context, again):
        """Call the handler. In the context, index i is the request of row i."""
        data = [request.take(row, again) for request, row in rows]
        owners = [request.index for request, _ in rows]
        pieces = Pieces([at for at, (request, _) in enumerate(rows) if request.write])
        # The context is changed in place, not copied: handlers keep it, set attributes, check its class.
        ids, processors = context.request_ids, context.request_processor
        before = {owner: _copy_of_state(processors[owner]) for owner in set(owners)}
        if pieces or owners != list(range(len(processors))):
            context.request_ids = {row: ids[owner] for row, owner in enumerate(owners)}
            context.request_processor = [pieces.processor(at, processors[of]) for at, of in enumerate(owners)]
            context.metrics.request_ids = context.request_ids
            context.cl_socket.pieces = pieces
        try:
            answers = self.entry(data, context)
            if isinstance(answers, list) and _is_count(len(answers), rows):
                return [pieces.joined(at, answer) for at, answer in enumerate(answers)]
            raise WrongCountError(answers, len(rows))
        except (Exception, SystemExit):
            for owner, state in before.items():
                if not is_streaming(processors[owner]):
                    vars(processors[owner]).update(state)
            raise
        finally:
            context.request_ids, context.request_processor = ids, processors
            context.metrics.request_ids = ids
            context.cl_socket.pieces = None

    def _give_up(self, rows, failure):
        """Let rows fail with the error of their batch."""
        logger.warning("No time to try %d rows by themselves: the limit is %g s", len(rows), self.limit)
        message = f"the batch failed, with no time to try this row by itself: {failure.message}"
        for request, row in rows:
            if not request.failure:
                request.fail(failure._replace(message=message), row)

    def _detect_one_row_handler(self, made):
        """Call the handler row by row from now on if every call with several rows failed, and no other."""
        several = [failure for size, failure in made if size > 1]
        single = [failure for size, failure in made if size == 1]
        wrong = [failure for failure in several if failure and failure.kind is WrongCountError]
        if wrong and wrong == several and len(single) > 1 and not any(single):
            self.one_row = True
            logger.warning("The handler takes one row per call, so batching is off: %s", wrong[0].message)
        elif wrong:
            self._warn(wrong[0])

    def _warn(self, failure, exc_info=False):
        """Log a divided batch, once per class of error."""
        if failure.kind not in self._warned:
            self._warned.add(failure.kind)
            logger.warning("A batch failed and was divided: %s", failure.message, exc_info=exc_info)


def _is_count(answers, rows):
    """Return whether this number of answers fits the rows.

    That is one for each row. As with KServe's envelope, a handler can also combine the inputs of a V2
    request, and return a longer list for the only row of a V1 request.
    """
    request = rows[0][0]
    fewer = request.whole and 0 < answers < len(rows)
    more = request.any_count and len(rows) == 1 and answers > 1
    return answers == len(rows) or fewer or more


def _parts(rows, one_by_one):
    size = 1 if one_by_one else (len(rows) + 1) // 2
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def is_streaming(processor):
    """Return whether a piece of the answer to a request was sent."""
    return processor.get_response_header(STREAMING) is not None


def _copy_of_state(processor):
    """Copy the status and the headers of a request in the context: a call can change them."""
    return {key: dict(value) if type(value) is dict else value for key, value in vars(processor).items()}


def explain(error):
    """Return the failure for an error of the handler."""
    from ts.utils.util import PredictionException

    has_status = isinstance(error, PredictionException)
    try:
        message = str(error.message if has_status else error)
    except Exception:
        message = "(no text)"
    if has_status:
        code = error.error_code
        return Failure(code if type(code) is int and 400 <= code < 600 else 500, message, type(error))
    if not isinstance(error, WrongCountError):
        message = f"{type(error).__name__}: {message}"
    # A client can choose an error's text, but not its class.
    out_of_memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    return Failure(507 if out_of_memory else 500, message, type(error))


def device_is_lost(context):
    """Return whether the GPU is unusable: after a failed assertion on it, every later call fails.

    Tests the GPU itself, because a client can choose an error's text.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize(context.system_properties.get("gpu_id"))
    except Exception:
        return True
    return False
