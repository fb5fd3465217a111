"""Gives TorchServe places that it can write to, as any user.

OpenShift runs a container as a user of the namespace's own, in group 0. The image does not know that user: it
has no name, its home is `/`, and the image's folders belong to another user.
"""

import os
import pwd
import tempfile
from pathlib import Path

_NAME_VARIABLES = ("LOGNAME", "USER", "LNAME", "USERNAME")  # which Python's getpass reads before /etc/passwd


def with_places(environment):
    """Return an environment in which TorchServe, pip and handlers can write.

    TorchServe unpacks models and installs requirements in TEMP. A variable with a writable folder stays.
    """
    wanted = {"TEMP": environment.get("TEMP"), "HOME": environment.get("HOME", "/")}
    for name in ("LOG_LOCATION", "METRICS_LOCATION"):
        wanted[name] = environment.get(name, "logs")
    places = {}
    for name, path in wanted.items():
        if path and not _is_writable(Path(path).absolute()):
            places[name] = tempfile.mkdtemp(prefix=f"kdeploy-{name.lower()}-")
    if not any(environment.get(name) for name in _NAME_VARIABLES) and not _has_name():
        places["USER"] = "torchserve"
    return {**environment, **places}


def _is_writable(path):
    """Return whether a folder can be written, or created in its parent."""
    return os.access(path if path.is_dir() else path.parent, os.W_OK | os.X_OK)


def _has_name():
    try:
        return bool(pwd.getpwuid(os.getuid()))
    except KeyError:
        return False
