"""What TorchServe's log says about why a model does not load. Pure.

TorchServe retries a worker that cannot load for minutes, and calls itself healthy meanwhile. The true
exception stands in the log, above others that it caused. The container's first process runs this source
on the serving image's Python 3.9, so it imports `re` alone and its memory is bounded whatever is logged.
"""

from __future__ import annotations

import re

_WORKER_LINE = re.compile(r"^\S+ \[\w+ *\] (?P<worker>W-\d+-.+?)-std(?:out|err) MODEL_LOG - (?P<text>.*)$")
_RETRY = re.compile(r"\] (?P<worker>W-\d+-\S+) .*Retry worker: \d+ in \d+ seconds")
_ERROR = re.compile(r"\] (?P<worker>W-\d+-\S+) .* - Backend worker error$")
_TOO_LATE = "Backend worker did not respond in given time"
_NOT_REGISTERED = "Error while registering model. Details: "
_PIP_FAILED = "Custom pip package installation failed"
_PORT_TAKEN = ("Address already in use", "Failed to bind to address")
_TRACEBACK = "Traceback (most recent call last):"
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+)')
# A frame of the model's own code: TorchServe unpacks archives into .../models/HASH/.
_OWN = re.compile(r"/models/[^/]+/(?!.*site-packages/|kdeploy_handler\.py$)")
# TorchServe looks for a handler that failed to import among its own, and blames that; a RuntimeError it
# logs, and raises another in its place.
_MISLEADING = re.compile(r".*No module named 'ts\.torch_handler\.|RuntimeError: \d{3} - ")

# A second attempt fails at these, too. Anything else counts once it was seen twice.
_CERTAIN = re.compile(r"(ModuleNotFound|Import|Syntax|Indentation|Tab)Error\b")
_SAME_TWICE, _ANY = 2, 3
_PREFIX = re.compile(r"^\S+ \[(?P<level>\w+) *\] \S+ (?P<logger>\S+) - ")
_PIP_ERROR = re.compile(r"^\S+ +ERROR: (?P<text>.*)$")

_LINE_MAX = 4096  # characters; what is longer is read as several lines
_MESSAGE_MAX = 1000
_KEPT = 20  # lines, and exceptions of one attempt


class _Worker:
    """The exceptions of one worker thread, over its attempts to load the model."""

    def __init__(self) -> None:
        self.attempts = 0
        self.reasons: list[str] = []  # of the last two attempts that gave one
        self._raised: list[str] = []  # in this attempt, each with its place at the end
        self._text = self._place = ""
        self._own = self._inside = self._message = False

    @property
    def reason(self) -> str:
        """The newest exception and where it was raised; nothing if none was logged."""
        return self._true() or (self.reasons[-1] if self.reasons else "")

    def read(self, text: str) -> None:
        if text.startswith(_TRACEBACK):
            self._inside, self._message, self._place, self._own = True, False, "", False
        elif self._inside:
            self._read_inside(text)
        elif self._message and text[:1] in (" ", "\t") and text.strip():
            # The message of an exception may go on: the keys that a state_dict misses, for one.
            self._text = f"{self._text} {text.strip()}"[:_MESSAGE_MAX]
            self._raised[-1] = self._text + self._place
        elif text.strip():
            self._message = False

    def note(self, error: str) -> None:
        """Take an error of this attempt, one of the frontend's among them."""
        self._raised = [*self._raised[1 - _KEPT :], error]

    def fail(self) -> None:
        self.attempts += 1
        if self._raised:
            self.reasons = [*self.reasons[-1:], self._true()]
        self._raised, self._message = [], False

    def _read_inside(self, text: str) -> None:
        frame = _FRAME.match(text)
        if frame:
            place = f" ({frame['file'].rpartition('/')[2]}, line {frame['line']})"
            own = _OWN.search(frame["file"])
            if own or not self._own:
                self._place, self._own = place, bool(own)
        elif text[:1] not in (" ", "\t") and text.strip():
            self._text = text.strip()[:_MESSAGE_MAX]
            self.note(self._text + self._place)
            self._inside, self._message = False, True

    def _true(self) -> str:
        """Return the last exception of this attempt that was not raised in another's place."""
        true = [error for error in self._raised if not _MISLEADING.match(error)]
        return (true or self._raised or [""])[-1]


def last_traceback(lines: tuple[str, ...]) -> str:
    """Return the exception of the last traceback in a Python program's log, with its file and line."""
    worker = _Worker()
    for line in lines:
        said = _WORKER_LINE.match(line)
        worker.read(said["text"] if said else line)
    return worker.reason


def pip_errors(text: str) -> list[str]:
    """Return the errors in pip's own log, and what a build that failed said last."""
    errors, before = [], ""
    for line in text.splitlines():
        found = _PIP_ERROR.match(line)
        if found and "exited with" in found["text"]:
            errors.append(before)
        elif found and "[present-rich]" not in found["text"]:
            errors.append(found["text"].strip())
        elif not found:
            before = line.partition(" ")[2].strip() or before
    return list(dict.fromkeys(errors))


class LoadLog:
    """Reads a log as it is written; says why the model cannot load as soon as that is certain."""

    def __init__(self) -> None:
        self.port_taken = False
        self.pip_failed = False
        self.last_lines: list[str] = []
        self._rest = ""
        self._workers: dict[str, _Worker] = {}
        self._erring = ""
        self._not_registered = ""
        self._pip_speaks = False
        self._pip: list[str] = []

    def feed(self, text: str) -> None:
        """Read on; a last line without its end is kept until that comes."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._read(line)
        size = len(self._rest) - len(self._rest) % _LINE_MAX
        for start in range(0, size, _LINE_MAX):
            self._read(self._rest[start : start + _LINE_MAX])
        self._rest = self._rest[size:]

    @property
    def failure(self) -> str:
        """Why the model will not load, or nothing while it still may."""
        if self.pip_failed:
            return "; ".join(["pip cannot install the model's requirements", *self._pip])
        workers = self._workers.values()
        # One worker that loads makes the model ready, however the others fare.
        return self.reason if workers and all(map(self._is_blocked, workers)) else self._not_registered

    @property
    def reason(self) -> str:
        """The newest exception of a worker, or that one died without a word; nothing if none did."""
        reasons = [worker.reason for worker in self._workers.values() if worker.reason]
        if reasons:
            return reasons[-1]
        if any(worker.attempts for worker in self._workers.values()):
            return "the worker process ended without a word: out of memory, or killed?"
        return ""

    @property
    def last_words(self) -> str:
        """The last lines that say something: what a process that ended has to say."""
        errors = [line for line in self.last_lines if re.search(r"(Exception|[Ee]rror|ERROR): ", line)]
        return " | ".join((errors or self.last_lines)[-3:])

    def _read(self, line: str) -> None:
        self._remember(line)
        said, retry, error = _WORKER_LINE.match(line), _RETRY.search(line), _ERROR.search(line)
        if said:
            self._worker(said["worker"]).read(said["text"])
        elif retry:
            self._worker(retry["worker"]).fail()
        elif error:
            self._erring = error["worker"]
        elif self._erring and _TOO_LATE in line:
            self._worker(self._erring).note("the worker did not load the model within its startup-timeout")
        else:
            self._read_frontend(line)

    def _read_frontend(self, line: str) -> None:
        if any(words in line for words in _PORT_TAKEN):
            self.port_taken = True
        elif self._pip_speaks:
            self._read_pip(line)
        elif _PIP_FAILED in line:
            self._pip_speaks = not self.pip_failed
        elif _NOT_REGISTERED in line:
            self._not_registered = f"TorchServe cannot load it: {line.partition(_NOT_REGISTERED)[2].strip()}"

    def _read_pip(self, line: str) -> None:
        if _PREFIX.match(line):  # TorchServe speaks again: pip has said all that it had to
            self.pip_failed, self._pip_speaks = True, False
        elif line.lower().startswith("error: ") and len(self._pip) < 3:
            self._pip.append(line[len("error: ") :].strip()[:_MESSAGE_MAX])

    def _remember(self, line: str) -> None:
        """Keep a line that may be among the last: not what the frontend says of its own course."""
        prefix = _PREFIX.match(line)
        chatter = prefix and prefix["level"] in ("INFO", "DEBUG") and prefix["logger"] != "MODEL_LOG"
        if line.strip() and not chatter and not line.startswith(("\tat ", "\t...")):
            self.last_lines = [*self.last_lines[1 - _KEPT :], _PREFIX.sub("", line.rstrip())]

    def _worker(self, name: str) -> _Worker:
        return self._workers.setdefault(name, _Worker())

    @staticmethod
    def _is_blocked(worker: _Worker) -> bool:
        if worker.reasons and _CERTAIN.match(worker.reasons[-1]):
            return True
        same = len(worker.reasons) == _SAME_TWICE and len(set(worker.reasons)) == 1
        return worker.attempts >= (_SAME_TWICE if same else _ANY)
