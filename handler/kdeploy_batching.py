"""Calls the model's handler once for the rows of a whole batch, and finds the rows at fault if that fails.

A failed call is divided: each half of its rows gets its own call, and so on, until the rows at fault stand
alone. k of them among n rows cost about 2·k·log2(n) more calls, and never more than 2·n in all. A request
fails with its first bad row, and its other rows get no more calls. Half of TorchServe's response-timeout is
the limit: the rows that are left then fail with their batch's error, before TorchServe kills the worker.

What a failed call changed is undone before the next one: rows are passed as fresh copies, and the statuses
and headers that it set are taken back. State that the handler keeps itself is not undone.
"""

import logging
import sys
import time
from typing import NamedTuple

STREAMING = "ts_stream_next"  # the header of an answer that goes out piece by piece

logger = logging.getLogger("kdeploy_handler")


class WrongCountError(ValueError):
    """The handler did not give one answer for each row."""

    def __init__(self, answers, count):
        given = f"a list of {len(answers)}" if isinstance(answers, list) else type(answers).__name__
        super().__init__(f"the handler returned {given} for {count} row(s), not a list of as many")
        self.as_for_one_row = not isinstance(answers, list) or len(answers) == 1


class Failure(NamedTuple):
    """What a failed call means for its rows: an HTTP status, a sentence for the client, the error's class."""

    status: int
    sentence: str
    kind: type


class Batcher:
    """Calls one handler, `entry(data, context)`; `timeout` is TorchServe's response-timeout in seconds."""

    def __init__(self, entry, timeout, clock=time.monotonic):
        self.entry = entry
        self.limit = timeout / 2
        self.clock = clock
        self.one_row = False
        self._warned = set()

    def ask(self, requests, context):
        """Give every request a value for each of its rows, or a failure."""
        joined = [] if self.one_row else [request for request in requests if not request.alone]
        if sum(len(request.rows) for request in joined) > 1:  # one row alone gets no second call
            joined = [request for request in joined if request.keep_copies()]
        together = set(joined)
        calls = [[(request, row) for request in joined for row in range(len(request.rows))]]
        for request in requests:
            if request not in together:
                calls += [[(request, row)] for row in range(len(request.rows))]
        self._learn(self._divide(calls, context))

    def _divide(self, calls, context):
        """Make the calls in order, and divide those that fail; return (size, failure) of every call made."""
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
                made.append((len(rows), found))
                waiting += [(part, found) for part in reversed(parts)]
        return made

    def _try(self, rows, context, again):
        """Make one call; return its failure, if any, and the parts of its rows to call again."""
        try:
            answers = self._call(rows, context, again)
        except (Exception, SystemExit) as error:  # a handler may call a program's main(), which exits
            processors = context.request_processor
            if all(map(_is_streaming, processors)) or device_is_lost(context):
                raise  # no request can be saved: TorchServe breaks off the streams, or answers 507
            failure = explain(error)
            if len(rows) == 1:
                logger.warning("Row %d of a request failed", rows[0][1], exc_info=True)
            elif failure.kind is not WrongCountError:
                self._warn(failure, exc_info=True)
            for request, row in rows:  # what was streamed cannot be taken back
                if not request.failure and (len(rows) == 1 or _is_streaming(processors[request.index])):
                    request.fail(failure.status, failure.sentence, row)
            return failure, _parts(rows, getattr(error, "as_for_one_row", False))
        for (request, _), answer in zip(rows, answers):
            request.values.append(answer)
        return None, []

    def _call(self, rows, context, again):
        """Call the handler; in the context, index i is the request that row i came from."""
        data = [request.take(row, again) for request, row in rows]
        owners = [request.index for request, _ in rows]
        # The context is lent, not copied: handlers keep it, write attributes to it, ask for its class.
        ids, processors = context.request_ids, context.request_processor
        before = {owner: _copy_of_state(processors[owner]) for owner in set(owners)}
        if owners != list(range(len(processors))):
            context.request_ids = {row: ids[owner] for row, owner in enumerate(owners)}
            context.request_processor = [processors[owner] for owner in owners]
        try:
            answers = self.entry(data, context)
            if isinstance(answers, list) and len(answers) == len(rows):
                return answers
            raise WrongCountError(answers, len(rows))
        except (Exception, SystemExit):
            for owner, state in before.items():
                if not _is_streaming(processors[owner]):
                    vars(processors[owner]).update(state)
            raise
        finally:
            context.request_ids, context.request_processor = ids, processors

    def _give_up(self, rows, failure):
        """Let rows fail with the error of the batch that they were in."""
        logger.warning("%d rows were not tried alone: half of response-timeout, %g s", len(rows), self.limit)
        sentence = f"its batch failed, with no time to try this row alone: {failure.sentence}"
        for request, row in rows:
            if not request.failure:
                request.fail(failure.status, sentence, row)

    def _learn(self, made):
        """Remember a handler that answered no call for several rows, but each row alone."""
        several = [failure for size, failure in made if size > 1]
        single = [failure for size, failure in made if size == 1]
        wrong = [failure for failure in several if failure and failure.kind is WrongCountError]
        if wrong and wrong == several and len(single) > 1 and not any(single):
            self.one_row = True
            logger.warning("Batching gains nothing here, each row gets its own call: %s", wrong[0].sentence)
        elif wrong:
            self._warn(wrong[0])

    def _warn(self, failure, exc_info=False):
        """Log a divided batch, once for each class of error."""
        if failure.kind not in self._warned:
            self._warned.add(failure.kind)
            logger.warning("A batch failed and was divided: %s", failure.sentence, exc_info=exc_info)


def _parts(rows, one_by_one):
    size = 1 if one_by_one else (len(rows) + 1) // 2
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _is_streaming(processor):
    return processor.get_response_header(STREAMING) is not None


def _copy_of_state(processor):
    """Copy what a call can change in a request's part of the context: the status and the headers."""
    return {key: dict(value) if type(value) is dict else value for key, value in vars(processor).items()}


def explain(error):
    """Return what an error from the handler means for the rows of its call."""
    from ts.utils.util import PredictionException

    is_handlers_own = isinstance(error, PredictionException)
    try:
        sentence = str(error.message if is_handlers_own else error)
    except Exception:
        sentence = "(no text)"
    if is_handlers_own:
        code = error.error_code
        return Failure(code if type(code) is int and 400 <= code < 600 else 500, sentence, type(error))
    if not isinstance(error, WrongCountError):
        sentence = f"{type(error).__name__}: {sentence}"
    # A client can choose an error's text, but not its class.
    out_of_memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    return Failure(507 if out_of_memory else 500, sentence, type(error))


def device_is_lost(context):
    """Tell whether the GPU is unusable: after a failed assertion on it, every later call fails too.

    The GPU itself is asked, since a client may have written an error's text.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize(context.system_properties.get("gpu_id"))
    except Exception:
        return True
    return False
