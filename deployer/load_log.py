"""What a starting TorchServe's log says about why its model does not load. Pure.

TorchServe retries a worker that cannot load for minutes, and calls itself healthy meanwhile. The
true exception stands in the log, above others that it caused.
"""

from __future__ import annotations

import re

_WORKER_LINE = re.compile(r"^\S+ \[\w+ *\] (?P<worker>W-\d+-.+?)-std(?:out|err) MODEL_LOG - (?P<text>.*)$")
_RETRY = re.compile(r"\] (?P<worker>W-\d+-\S+) .*Retry worker: \d+ in \d+ seconds")
_PIP_FAILED = "Custom pip package installation failed"
_PORT_TAKEN = ("Address already in use", "Failed to bind to address")
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = ("During handling of the above", "The above exception was the direct cause")
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+)')
# TorchServe looks for a handler that failed to import among its own, and blames that.
_MISLEADING = "No module named 'ts.torch_handler."

# No second attempt mends these; anything else may, until it has been seen twice.
_CERTAIN = re.compile(r"(ModuleNotFound|Import|Syntax|Indentation|Tab)Error\b")
_SAME_TWICE, _ANY = 2, 3
_PREFIX = re.compile(r"^\S+ \[\w+ *\] \S+ \S+ - ")
_PIP_ERROR = re.compile(r"^\S+ +ERROR: (?P<text>.*)$")


class _Worker:
    """The tracebacks of one worker thread, over its attempts to load the model."""

    def __init__(self) -> None:
        self.attempts = 0
        self.reasons: list[str] = []
        self._chain: list[str] = []
        self._frame = ""
        self._inside = self._joined = self._message = False

    def read(self, text: str) -> None:
        if text.startswith(_TRACEBACK):
            if not self._joined:
                self._close()
            self._inside, self._joined, self._message, self._frame = True, False, False, ""
        elif text.startswith(_CHAINED):
            self._joined, self._message = True, False
        elif self._inside:
            self._read_inside(text)
        elif self._message and text[:1] in (" ", "\t") and text.strip():
            # The message of an exception may go on: the keys that a state_dict misses, for one.
            self._chain[-1] = f"{self._chain[-1]} {text.strip()}"
        elif text.strip():
            self._message = False

    def fail(self) -> None:
        self.attempts += 1
        self._close()

    def _read_inside(self, text: str) -> None:
        frame = _FRAME.match(text)
        if frame:
            self._frame = f" ({frame['file'].rpartition('/')[2]}, line {frame['line']})"
        elif text[:1] not in (" ", "\t") and text.strip():
            self._chain.append(text.strip() + self._frame)
            self._inside, self._message = False, True

    def _close(self) -> None:
        if self._chain:
            true = [line for line in self._chain if _MISLEADING not in line]
            self.reasons.append((true or self._chain)[-1])
        self._chain, self._joined, self._message = [], False, False


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
        self._rest = ""
        self._workers: dict[str, _Worker] = {}
        self.pip_failed = False
        self._pip_speaks = False
        self._pip: list[str] = []
        self._last: list[str] = []

    def feed(self, text: str) -> None:
        """Read on; a last line without its end is kept until that comes."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._read(line)

    @property
    def failure(self) -> str:
        """Why the model will not load, or nothing while it still may."""
        if self.pip_failed:
            return "; ".join(["pip cannot install the model's requirements", *self._pip[:3]])
        blocked = [w for w in self._workers.values() if self._is_blocked(w)]
        return self.reason if blocked else ""

    @property
    def reason(self) -> str:
        """The newest exception of a worker, or that one died without a word; nothing if none did."""
        reasons = [reason for worker in self._workers.values() for reason in worker.reasons[-1:]]
        if reasons:
            return reasons[-1]
        if any(worker.attempts for worker in self._workers.values()):
            return "the worker process ended without a word: out of memory, or killed?"
        return ""

    @property
    def last_words(self) -> str:
        """The last lines that say something: what a process that ended has to say."""
        errors = [line for line in self._last if re.search(r"(Exception|[Ee]rror|ERROR): ", line)]
        return " | ".join((errors or self._last)[-3:])

    def _read(self, line: str) -> None:
        if line.strip() and not line.startswith(("\tat ", "\t...")):
            self._last = [*self._last[-19:], _PREFIX.sub("", line.strip())]
        said, retry = _WORKER_LINE.match(line), _RETRY.search(line)
        if said:
            self._worker(said["worker"]).read(said["text"])
        elif retry:
            self._worker(retry["worker"]).fail()
        elif any(words in line for words in _PORT_TAKEN):
            self.port_taken = True
        elif self._pip_speaks:
            self._read_pip(line)
        elif _PIP_FAILED in line:
            self._pip_speaks = not self.pip_failed

    def _read_pip(self, line: str) -> None:
        if _PREFIX.match(line):  # TorchServe speaks again: pip has said all that it had to
            self.pip_failed, self._pip_speaks = True, False
        elif line.lower().startswith("error: "):
            self._pip.append(line[len("error: ") :].strip())

    def _worker(self, name: str) -> _Worker:
        return self._workers.setdefault(name, _Worker())

    @staticmethod
    def _is_blocked(worker: _Worker) -> bool:
        if worker.attempts and worker.reasons and _CERTAIN.match(worker.reasons[-1]):
            return True
        same = len(worker.reasons) >= _SAME_TWICE and worker.reasons[-1] == worker.reasons[-2]
        return worker.attempts >= (_SAME_TWICE if same else _ANY)
