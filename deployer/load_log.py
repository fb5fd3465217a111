"""Finds in TorchServe's log why a model does not load. Pure.

TorchServe retries a failing worker for minutes, and reports that it is healthy meanwhile. The log has the
original exception before others that it caused. The container's first process runs this source on the serving
image's Python 3.9, so it imports only `re`, and its memory is bounded.
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
# TorchServe searches its own handlers for one that failed to import, and reports that it found none. It logs
# a RuntimeError of the model and raises another one.
_MISLEADING = re.compile(r".*No module named 'ts\.torch_handler\.|RuntimeError: \d{3} - ")

# A second attempt fails with the same error. Other exceptions must occur twice.
_CERTAIN = re.compile(r"(ModuleNotFound|Import|Syntax|Indentation|Tab)Error\b")
_SAME_TWICE, _ANY = 2, 3
_PREFIX = re.compile(r"^\S+ \[(?P<level>\w+) *\] \S+ (?P<logger>\S+) - ")
_PIP_ERROR = re.compile(r"^\S+ +ERROR: (?P<text>.*)$")

_LINE_MAX = 4096  # characters; a longer line is read as several lines
_MESSAGE_MAX = 1000
_KEPT = 20  # last lines, and exceptions of one attempt


class _Worker:
    """The exceptions of one worker thread in its attempts to load the model."""

    def __init__(self) -> None:
        self.attempts = 0
        self.reasons: list[str] = []  # of the last two attempts that raised an exception
        self._raised: list[str] = []  # exceptions of this attempt, each with its file and line
        self._text = self._place = ""
        self._own = self._inside = self._message = False

    @property
    def reason(self) -> str:
        """The newest exception with its file and line; empty if none was logged."""
        return self._true() or (self.reasons[-1] if self.reasons else "")

    def read(self, text: str) -> None:
        if text.startswith(_TRACEBACK):
            self._inside, self._message, self._place, self._own = True, False, "", False
        elif self._inside:
            self._read_inside(text)
        elif self._message and text[:1] in (" ", "\t") and text.strip():
            # An exception's message can have several lines, for example the missing keys of a state_dict.
            self._text = f"{self._text} {text.strip()}"[:_MESSAGE_MAX]
            self._raised[-1] = self._text + self._place
        elif text.strip():
            self._message = False

    def note(self, error: str) -> None:
        """Add an error of this attempt; the frontend can log one too."""
        self._raised = [*self._raised[1 - _KEPT :], error]

    def fail(self) -> None:
        self.attempts += 1
        if true := self._true():
            self.reasons = [*self.reasons[-1:], true]
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
        """Return the last exception of this attempt, except those that replace another one.

        A replacement can be logged so late that it counts as one of the next attempt.
        """
        true = [error for error in self._raised if not _MISLEADING.match(error)]
        replacements = [] if self.reasons else self._raised
        return (true or replacements or [""])[-1]


def last_traceback(lines: tuple[str, ...]) -> str:
    """Return the exception of the last traceback in a Python program's log, with its file and line."""
    worker = _Worker()
    for line in lines:
        logged = _WORKER_LINE.match(line)
        worker.read(logged["text"] if logged else line)
    return worker.reason


def pip_errors(text: str) -> list[str]:
    """Return the errors in pip's log, and the last output line of a failed build."""
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
    """Reads a log while it is written, and reports why the model cannot load as soon as that is certain."""

    def __init__(self) -> None:
        self.port_taken = False
        self.pip_failed = False
        self.last_lines: list[str] = []
        self._rest = ""
        self._workers: dict[str, _Worker] = {}
        self._erring = ""
        self._not_registered = ""
        self._in_pip_output = False
        self._pip: list[str] = []

    def feed(self, text: str) -> None:
        """Read more text; an incomplete last line is kept until its end is read."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._read(line)
        size = len(self._rest) - len(self._rest) % _LINE_MAX
        for start in range(0, size, _LINE_MAX):
            self._read(self._rest[start : start + _LINE_MAX])
        self._rest = self._rest[size:]

    @property
    def failure(self) -> str:
        """Why the model cannot load; empty while it still can."""
        if self.pip_failed:
            return "; ".join(["pip cannot install the model's requirements", *self._pip])
        workers = self._workers.values()
        # One worker that loads makes the model ready, even if all others fail.
        return self.reason if workers and all(map(self._is_blocked, workers)) else self._not_registered

    @property
    def reason(self) -> str:
        """The newest exception of a worker, or that a worker ended without one; empty if none ended."""
        reasons = [worker.reason for worker in self._workers.values() if worker.reason]
        if reasons:
            return reasons[-1]
        if any(worker.attempts for worker in self._workers.values()):
            return "the worker process ended without an error message, possibly for lack of memory"
        return ""

    @property
    def summary(self) -> str:
        """The last lines that contain an error, or else the last lines."""
        errors = [line for line in self.last_lines if re.search(r"(Exception|[Ee]rror|ERROR): ", line)]
        return " | ".join((errors or self.last_lines)[-3:])

    def _read(self, line: str) -> None:
        self._remember(line)
        logged, retry, error = _WORKER_LINE.match(line), _RETRY.search(line), _ERROR.search(line)
        if logged:
            self._worker(logged["worker"]).read(logged["text"])
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
        elif self._in_pip_output:
            self._read_pip(line)
        elif _PIP_FAILED in line:
            self._in_pip_output = not self.pip_failed
        elif _NOT_REGISTERED in line:
            self._not_registered = (
                f"TorchServe cannot load the model: {line.partition(_NOT_REGISTERED)[2].strip()}"
            )

    def _read_pip(self, line: str) -> None:
        if _PREFIX.match(line):  # a line of TorchServe: pip's output is complete
            self.pip_failed, self._in_pip_output = True, False
        elif line.lower().startswith("error: ") and len(self._pip) < 3:
            self._pip.append(line[len("error: ") :].strip()[:_MESSAGE_MAX])

    def _remember(self, line: str) -> None:
        """Keep a line as one of the last, unless it is progress output of the frontend."""
        prefix = _PREFIX.match(line)
        progress = prefix and prefix["level"] in ("INFO", "DEBUG") and prefix["logger"] != "MODEL_LOG"
        if line.strip() and not progress and not line.startswith(("\tat ", "\t...")):
            self.last_lines = [*self.last_lines[1 - _KEPT :], _PREFIX.sub("", line.rstrip())]

    def _worker(self, name: str) -> _Worker:
        return self._workers.setdefault(name, _Worker())

    @staticmethod
    def _is_blocked(worker: _Worker) -> bool:
        if worker.reasons and _CERTAIN.match(worker.reasons[-1]):
            return True
        same = len(worker.reasons) == _SAME_TWICE and len(set(worker.reasons)) == 1
        return worker.attempts >= (_SAME_TWICE if same else _ANY)
