"""Handlers that stream: V1 and V2 get what was streamed for a row as one value, other requests as it comes.

TorchServe's `send_intermediate_predict_response` sets a header for each row, and then sends a message with
the pieces of these rows. So the order of the headers says which piece belongs to which row.
"""

import struct

from kdeploy_limits import check_size
from kdeploy_values import write_value

STREAMING = "ts_stream_next"  # the header of a streamed answer
_END = struct.pack("!i", -1)


class WorkerSocket:
    """The worker's connection for handlers that stream. A piece that is too large fails in the handler."""

    def __init__(self, socket, limit):
        self._socket = socket
        self._limit = limit
        self.pieces = None  # of the current call, if it has rows of V1 or V2

    def __getattr__(self, name):
        return getattr(self._socket, name)

    def sendall(self, message):
        """Send a message. Raises UnsendableError if TorchServe would kill the worker for it."""
        if self.pieces:
            message = self.pieces.keep(message)
        if len(message) > self._limit:
            for answer in parse_message(message)[1]:
                check_size(len(answer.body), self._limit, "a streamed piece of the answer")
        if message:
            self._socket.sendall(message)


class Pieces:
    """What a handler streams in one call. `kept`: the rows whose pieces are kept."""

    def __init__(self, kept):
        self._pieces = {row: [] for row in kept}
        self._order = []  # of the rows in the next message

    def __bool__(self):
        return bool(self._pieces)

    def processor(self, row, processor):
        """Return TorchServe's processor of a request, for one row of the call."""
        return processor if not self else _RowProcessor(processor, self._order, row, row in self._pieces)

    def keep(self, message):
        """Return a message without the pieces that are kept; nothing if no piece is left."""
        head, answers = parse_message(message)
        rows, self._order[:] = list(self._order), []
        if len(rows) != len(answers):
            return message
        for row, answer in zip(rows, answers):
            if row in self._pieces:
                self._pieces[row].append(answer.body)
        sent = [answer.encoded for row, answer in zip(rows, answers) if row not in self._pieces]
        return b"".join([head, *sent, _END]) if sent else b""

    def joined(self, row, value):
        """Return the value of a row: if it was streamed, its pieces and the value, as text or bytes."""
        pieces = self._pieces.get(row, [])
        is_last_piece = isinstance(value, (bytes, bytearray)) and any(self._pieces.values())
        if not (pieces or is_last_piece):
            return value
        data = b"".join([*pieces, write_value(value)])
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data


class _RowProcessor:
    """TorchServe's processor of a request, which notes the row of a streamed piece."""

    def __init__(self, processor, order, row, is_kept):
        self._processor = processor
        self._order = order
        self._row = row
        self._is_kept = is_kept

    def __getattr__(self, name):
        return getattr(self._processor, name)

    def add_response_property(self, key, value):
        """Add a header to the answer, unless it says that V1 or V2 are streamed."""
        if key == STREAMING:
            self._order.append(self._row)
        if key != STREAMING or not self._is_kept:
            self._processor.add_response_property(key, value)


class _Answer:
    """One request's part of a message: all its bytes, and the body in them."""

    def __init__(self, encoded, body):
        self.encoded = encoded
        self.body = body


def parse_message(message):
    """Return the head of a message from a worker to TorchServe, and its answers."""
    position, answers = 0, []

    def number():
        nonlocal position
        position += 4
        return struct.unpack_from("!i", message, position - 4)[0]

    def skip():
        nonlocal position
        size = number()
        position += size
        return size

    number()  # the code and the text of the batch
    skip()
    head = start = position
    while skip() >= 0:  # the ID of the request, or -1 at the end
        skip()  # content type, status and phrase
        number()
        skip()
        for _ in range(2 * number()):  # the names and values of headers
            skip()
        size = skip()
        answers.append(_Answer(bytes(message[start:position]), bytes(message[position - size : position])))
        start = position
    return bytes(message[:head]), answers


def end_continuous_batching(context, index):
    """Let TorchServe's continuous batching end with this answer to a request."""
    criteria = getattr(context, "stopping_criteria", None)
    if criteria:
        criteria = criteria if isinstance(criteria, dict) else dict(enumerate(criteria))
        context.stopping_criteria = {**criteria, index: lambda _: True}
