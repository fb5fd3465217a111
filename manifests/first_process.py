"""The container's first process: starts TorchServe behind the front, watches its model load, and drains it.

If the model cannot be loaded, the container ends with status 78 and the reason as its termination message.
Status 75 means that another process has a port. Once the model has been ready, TorchServe restarts its
workers itself.

SIGTERM starts a drain: the front accepts requests for KDEPLOY_DRAIN_SECONDS, then no new ones. TorchServe
stops when no request is in flight, or KDEPLOY_GRACE_SECONDS after the signal. SIGINT skips the drain seconds.
A second signal stops TorchServe immediately, and so does the first one if the model has never been ready.

It can be process 1 of a container, so it reaps every child.
"""

import argparse
import asyncio
import codecs
import contextlib
import errno
import json
import os
import re
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

from deployer.load_log import LoadLog, pip_errors
from manifests.front import Front
from manifests.grpc_front import GrpcFront
from manifests.places import with_places
from manifests.probe import missing
from manifests.status import Status

CANNOT_LOAD = 78  # the model cannot be loaded: EX_CONFIG of sysexits.h
PORT_TAKEN = 75  # another process has a port: EX_TEMPFAIL
MESSAGE_MAX = 4096  # bytes, the kubelet's limit
STOP = 0.2  # seconds that TorchServe's processes get after SIGTERM: no request is in flight by then
PERIOD = 0.5  # seconds between two probes of a model that loads
READ_MAX = 1 << 16  # bytes of TorchServe's output in one piece: the size of a pipe
PAUSE = 0.01  # seconds between two pieces of it, once the model is ready
LATE = 0.5  # seconds that a worker's last lines can arrive after TorchServe reports its end

_SECRET_NAME = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|CONNECTION_STRING|(^|_)(PASS|PWD|SAS))(_|$)"
    r"(?<!^PWD)",
    re.IGNORECASE,
)
_USER = re.compile(r"(?<=\w://)[^/\s'\"]+(?=@)")
_TOKEN = re.compile(
    r"""((?:(?P<header>authorization|cookie)|token|password|passwd|passphrase|pwd|secret|signature|sig"""
    r"""|credential|(?:api|access|account|private|secret|storage)[_-]?key)(?:\\*["'])?\s*[=:]\s*\\*)"""
    r"""(?:(?P<open>[bru]?(?P<quote>["']))(?:(?!(?P=quote))[^\n])*|(?(header)[^\n"']+|[^\s"'&,;{\[]+))"""
    r"""|((?:\bbearer|--[\w-]{0,40}(?:token|password|secret|key))\s+)[^\s"'&,;]+""",
    re.IGNORECASE,
)


def redact(text, environment):
    """Return a text without passwords in URLs, tokens, and the values of secret environment variables."""
    secrets = [value for name, value in environment.items() if _SECRET_NAME.search(name) and len(value) > 3]
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, "***")
    return _TOKEN.sub(r"\1\g<open>\5***", _USER.sub("***", text))


def compose(reason, lines, environment):
    """Return a termination message: the reason, then as many of the last lines as fit."""
    message = redact(reason, environment).encode()[: MESSAGE_MAX // 2]
    last = []
    for text in reversed(redact("\n".join(lines), environment).split("\n")):
        line = text.encode()[:500]
        if len(message) + sum(map(len, last)) + len(last) + len(line) + 2 > MESSAGE_MAX:
            break
        last.insert(0, line)
    return b"\n".join([message, *last]).decode("utf-8", "ignore")


def tail(path, size=1 << 18):
    """Return the end of a text file; nothing if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - size, 0))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


class Memory:
    """The container's memory as the kernel reports it, in the files of a cgroup of version 2 or 1."""

    def __init__(self, folder):
        """Read the cgroup that is mounted at `folder`."""
        self._folder = folder
        self._kills_before = self._kills()

    def killed(self):
        """Return why the kernel has killed a process since the start; empty if it has not."""
        if self._kills() <= self._kills_before:
            return ""
        limits = [tail(f"{self._folder}/{name}") for name in ("memory.max", "memory/memory.limit_in_bytes")]
        limit = next((int(text) for text in limits if text.strip().isdigit()), 0)
        shown = f"the container's limit is {limit >> 20}Mi" if limit else "the machine has none left"
        return f"the worker ran out of memory: {shown}; raise serving.memory"

    def _kills(self):
        events = [tail(f"{self._folder}/{name}") for name in ("memory.events", "memory/memory.oom_control")]
        found = re.search(r"^oom_kill (\d+)", "\n".join(events), re.MULTILINE)
        return int(found[1]) if found else 0


def read_configuration(command, environment):
    """Return the text of TorchServe's config.properties, and its entries."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ts-config", default="config.properties")
    path = environment.get("TS_CONFIG_FILE") or parser.parse_known_args(command)[0].ts_config
    with open(path, encoding="latin-1", newline="") as file:
        text = file.read()
    pairs = [line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return text, {key.strip(): value.strip() for key, value in pairs}


def address_of(entries, key, port):
    """Return host and port of an address in config.properties; `port` is TorchServe's default."""
    address = urlsplit(entries.get(key, f"http://127.0.0.1:{port}"))
    if address.scheme != "http" or not address.hostname:
        raise ValueError(f"{key} must be http://HOST:PORT, not {address.geturl()}")
    return address.hostname, address.port or 80


def read_models(entries):
    """Return the version of every model in the snapshot of a config.properties, by name."""
    models = json.loads(entries.get("model_snapshot", "{}")).get("models", {})
    return {name: next(iter(versions)) for name, versions in models.items()}


def write_private(text, changes):
    """Write a copy of a config.properties with other values of some keys; return its path."""
    lines = [line for line in text.splitlines() if line.partition("=")[0].strip() not in changes]
    # Java's form of what is not ASCII, as in JSON; the launcher reads UTF-8.
    lines += [f"{key}={json.dumps(value)[1:-1]}" for key, value in changes.items()]
    return write_temporary("".join(line + "\n" for line in lines).encode("latin-1"), ".properties")


def write_temporary(data, suffix):
    """Write a new temporary file; return its path."""
    handle, path = tempfile.mkstemp(prefix="kdeploy-", suffix=suffix)
    with open(handle, "wb") as file:
        file.write(data)
    return path


def unpack_metrics(command, entries):
    """Unpack the metrics configuration of a model archive; return its path, or nothing if there is none.

    TorchServe's frontend reads it before it unpacks the archive.
    """
    name = entries.get("metrics_config", "")
    if not name or "/" in name:
        return ""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model-store", default=entries.get("model_store"))
    store = parser.parse_known_args(command)[0].model_store
    [versions] = json.loads(entries["model_snapshot"])["models"].values()
    [version] = versions.values()
    with zipfile.ZipFile(Path(store, version["marName"])) as archive:
        return write_temporary(archive.read(name), ".yaml")


def free_port():
    """Return a free loopback port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Output:
    """Copies the output of TorchServe's processes unchanged, and analyzes it until the model is ready."""

    def __init__(self, source, sink, notice):
        """Copy between two file descriptors in a thread, which calls `notice` once if loading fails."""
        self.log = LoadLog()
        self.reading = True
        self._lock = threading.Lock()
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._thread = threading.Thread(target=self._run, args=(source, sink, notice), daemon=True)
        self._thread.start()

    def ended(self):
        """Return whether every process that could write has ended."""
        return not self._thread.is_alive()

    def reason(self):
        """Return why the model cannot be loaded, or TorchServe's last message; and the last lines."""
        with self._lock:
            reason = self.log.failure or f"TorchServe ended: {self.log.summary}"
            if self.log.pip_failed:
                errors = pip_errors(tail(os.environ.get("PIP_LOG", "")))[-3:]
                reason = "; ".join([reason, *(line for line in errors if line not in reason)])
            return reason, list(self.log.last_lines)

    def _run(self, source, sink, notice):
        while True:
            data = os.read(source, READ_MAX)
            if not data:
                break
            with contextlib.suppress(OSError):  # a closed log must not block TorchServe
                _write(sink, data)
            if self.reading:
                with self._lock:
                    self.log.feed(self._decode(data))
                    failed = self.log.failure or self.log.port_taken
                if failed:
                    self.reading = False
                    notice()
            elif (
                len(data) < READ_MAX
            ):  # later lines of TorchServe in one piece, instead of thousands per second
                time.sleep(PAUSE)


def _write(sink, data):
    while data:
        data = data[os.write(sink, data) :]


SIGNAL, READY, FAILED, ENDED = "signal", "ready", "failed", "ended"  # events


class FirstProcess:
    """One run of the container."""

    def __init__(self, command, environment):
        """`command` starts TorchServe's launcher. Needs a running event loop."""
        self._command, self._environment = command, environment
        self._drain_seconds = float(environment.get("KDEPLOY_DRAIN_SECONDS", 5))
        self._grace_seconds = float(environment.get("KDEPLOY_GRACE_SECONDS", 25))
        self._memory = Memory(environment.get("KDEPLOY_CGROUP", ""))
        self._loop = asyncio.get_running_loop()
        self._events = asyncio.Queue()
        self._front = self._grpc = None
        self._child = self._output = None
        self._ended = False

    async def run(self):
        """Run until the end, and return the exit status."""
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._events.put_nowait, (SIGNAL, number))
        try:
            text, entries = read_configuration(self._command, self._environment)
            management = address_of(entries, "management_address", 8081)[1]
            status = Status(read_models(entries), lambda: missing(management))
            self._front = Front(free_port(), status)
            await self._front.listen(*address_of(entries, "inference_address", 8080))
            if "KDEPLOY_GRPC_ADDRESS" in self._environment:
                self._grpc = self._serve_grpc(status, entries)
            changes = {"inference_address": f"http://127.0.0.1:{self._front.upstream_port}"}
            metrics = unpack_metrics(self._command, entries)
            if metrics:
                changes["metrics_config"] = metrics
            self._start(write_private(text, changes))
        except (ImportError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            status = PORT_TAKEN if taken else CANNOT_LOAD
            return self._fail(status, f"cannot start TorchServe: {error}")
        threading.Thread(target=self._watch, args=(management,), daemon=True).start()
        return await self._live()

    def _serve_grpc(self, status, entries):
        """Serve gRPC before the front. Raises ImportError without grpcio."""
        limits = [int(entries.get(f"max_{kind}_size", 6_553_500)) for kind in ("request", "response")]
        return GrpcFront(self._environment["KDEPLOY_GRPC_ADDRESS"], self._front.port, status, limits)

    async def _live(self):
        """Handle events until the end; return the exit status."""
        ready = False
        while True:
            event, value = await self._events.get()
            if event == READY:
                ready, self._output.reading = True, False
            elif event == SIGNAL:
                if ready:
                    await self._drain(value)
                await self._stop()
                return 0
            elif not ready:
                return await self._explain()
            elif event == ENDED:
                await self._stop()
                return value

    async def _drain(self, number):
        """Drain until no request is in flight, the time is up, or another signal arrives."""
        end = self._loop.time() + self._grace_seconds
        self._front.drain()
        with contextlib.suppress(asyncio.TimeoutError):
            seconds = self._drain_seconds if number == signal.SIGTERM else 0
            # Another signal, or TorchServe has ended.
            return await asyncio.wait_for(self._events.get(), seconds)
        waits = {asyncio.ensure_future(one) for one in (self._close(end), self._events.get())}
        return await asyncio.wait(waits, timeout=end - self._loop.time(), return_when=asyncio.FIRST_COMPLETED)

    async def _close(self, end):
        """Accept no more requests, and wait for those in flight. Requests in gRPC are the front's, too."""
        if self._grpc:
            await self._loop.run_in_executor(None, self._grpc.close, max(end - self._loop.time(), 0))
        await self._front.close()

    async def _explain(self):
        """Report why the model cannot be loaded; return the exit status."""
        await asyncio.sleep(LATE)
        reason, lines = self._output.reason()
        await self._stop()
        status = PORT_TAKEN if self._output.log.port_taken else CANNOT_LOAD
        return self._fail(status, self._memory.killed() or reason, lines)

    def _fail(self, status, reason, lines=()):
        """Write the termination message; return the exit status."""
        message = compose(reason, lines, self._environment)
        with contextlib.suppress(OSError):
            Path(self._environment.get("KDEPLOY_TERMINATION_LOG", "")).write_text(message, "utf-8")
        first_line = message.partition("\n")[0]
        sys.stderr.write(f"kdeploy: the model cannot be loaded: {first_line}\n")
        return status

    def _start(self, configuration):
        """Start TorchServe in another process group, so that signals for this one do not reach it."""
        environment = {**with_places(self._environment), "TS_CONFIG_FILE": configuration}
        environment.pop("TS_INFERENCE_ADDRESS", None)
        source, sink = os.pipe()
        self._child = os.posix_spawnp(
            self._command[0],
            self._command,
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, sink, 1), (os.POSIX_SPAWN_DUP2, sink, 2)],
            setpgroup=0,
            setsigdef=[signal.SIGPIPE],  # Python ignores it
        )
        os.close(sink)
        self._output = Output(source, 1, lambda: self._emit(FAILED))
        # After the start, so that TorchServe keeps its own limit. The front needs two files per connection.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def _watch(self, management):
        """Probe a model that loads, in a thread."""
        while True:
            if self._memory.killed():
                return self._emit(FAILED)
            if not missing(management):
                return self._emit(READY)
            time.sleep(PERIOD)

    def _emit(self, event):
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, (event, None))

    def _reap(self):
        """Reap every child that has ended: process 1 also inherits orphans."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                if pid == self._child:
                    self._ended = True
                    code = os.waitstatus_to_exitcode(status)
                    self._events.put_nowait((ENDED, code if code >= 0 else 128 - code))

    async def _stop(self):
        """Stop TorchServe and every process of its group; if its launcher has ended, with SIGKILL only."""
        for number, patience in ((signal.SIGTERM, STOP), (signal.SIGKILL, 1.0))[self._ended :]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child, number)
            end = self._loop.time() + patience
            while not self._output.ended() and self._loop.time() < end:
                await asyncio.sleep(0.02)


async def main():
    """Start TorchServe with the arguments of this program, behind the front."""
    return await FirstProcess(sys.argv[1:], dict(os.environ)).run()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
