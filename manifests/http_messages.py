"""The part of HTTP/1.1 that a proxy needs: where the head and the body of a message end. Pure."""

import re

HEAD_MAX = 64 << 10  # bytes of a head
LINE_MAX = 4 << 10  # bytes between two chunks
CHUNKED, UNTIL_CLOSE = -1, -2  # how a body without a length ends

REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^ \r\n]+) HTTP/1\.([01])\r\n")
ANSWER = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r]")
_FIELD = re.compile(
    rb"\r\n(content-length|transfer-encoding|connection|expect)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE
)
_CONNECTION = re.compile(rb"\r\n(?:proxy-connection|connection|keep-alive)[ \t]*:[^\r\n]*", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;|$)")


class BadMessageError(ValueError):
    """The message is not HTTP/1.1, or is ambiguous."""


class Head:
    """The head of a request or a response: its bytes, and the fields that define where the message ends."""

    def __init__(self, data, line):
        """Parse a complete head; its first line must match `line`."""
        self.data = data
        self.line = line.match(data)
        if not self.line:
            raise BadMessageError("the first line is not HTTP/1.1")
        fields = {}
        for name, value in _FIELD.findall(data):
            fields.setdefault(name.lower(), []).append(value.strip().lower())
        self._lengths = set(fields.get(b"content-length", ()))
        self._codings = fields.get(b"transfer-encoding")
        self.expects = b"100-continue" in fields.get(b"expect", ())
        options = b",".join(fields.get(b"connection", ()))
        self.options = {option.strip() for option in options.split(b",")} if options else set()

    def framing(self, otherwise):
        """Return the body's length in bytes, CHUNKED, or `otherwise` if the head defines neither."""
        if self._codings:
            if self._codings != [b"chunked"] or self._lengths:
                raise BadMessageError("Transfer-Encoding must be chunked, without Content-Length")
            return CHUNKED
        if not self._lengths:
            return otherwise
        length = self._lengths.pop()
        if self._lengths or not _LENGTH.fullmatch(length):
            raise BadMessageError("Content-Length must be one number")
        return int(length)

    def without_connection(self, *fields):
        """Return the head's bytes with other fields instead of those about the connection."""
        data = _CONNECTION.sub(b"", self.data)
        return b"\r\n".join([data[:-4], *fields]) + b"\r\n\r\n"


def find_head(data):
    """Return the size of the head at the start of the data; 0 while it is incomplete."""
    size = data.find(b"\r\n\r\n") + 4
    head = data[:size] if size > 3 else data
    if len(head) > HEAD_MAX:
        raise BadMessageError(f"the head exceeds {HEAD_MAX} bytes")
    if head.count(b"\n") != head.count(b"\r\n"):
        raise BadMessageError("a line of the head does not end with CR LF")
    return size if size > 3 else 0


class Body:
    """Finds the end of one message's body as its bytes arrive."""

    def __init__(self, framing):
        self.framing = framing
        self.done = framing == 0
        self._left = max(framing, 0)
        self._line = b""
        self._in_trailer = False

    def split(self, data):
        """Return how many of the next bytes belong to the body."""
        if self.framing == CHUNKED:
            return self._split_chunks(data)
        if self.framing == UNTIL_CLOSE:
            return len(data)
        size = min(self._left, len(data))
        self._left -= size
        self.done = not self._left
        return size

    def _split_chunks(self, data):
        position = 0
        while position < len(data) and not self.done:
            if self._left:
                size = min(self._left, len(data) - position)
                self._left -= size
                position += size
                continue
            end = data.find(b"\n", position) + 1 or len(data)
            self._line += data[position:end]
            position = end
            if len(self._line) > LINE_MAX:
                raise BadMessageError("a line between two chunks is too long")
            if self._line.endswith(b"\n"):
                self._read_line(self._line.rstrip(b"\r\n"))
                self._line = b""
        return position

    def _read_line(self, line):
        size = _SIZE.match(line)
        if self._in_trailer:
            self.done = not line
        elif not size:
            raise BadMessageError("a chunk does not start with its size")
        else:
            length = int(size[1], 16)
            self._left = length + 2 if length else 0  # including the CR LF after it
            self._in_trailer = not length
