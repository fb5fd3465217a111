"""kdeploy: takes a trained PyTorch model to production on KServe.

The names in `__all__` are the public Python API: see docs/reference/python-api.md. Everything else in this
package is private. Each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deployer import errors, events
    from deployer.diff import Diff
    from deployer.findings import Finding
    from deployer.journal import Entry, Outcome
    from deployer.observed import Observed, Phase
    from deployer.predict import Client, Failure, Prediction
    from deployer.project import Project
    from deployer.release import Release
    from deployer.rollout.plan import Decision, Strategy
    from deployer.rollouts import Rollouts
    from deployer.workspace import Workspace, open_workspace

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Decision",
    "Diff",
    "Entry",
    "Failure",
    "Finding",
    "Observed",
    "Outcome",
    "Phase",
    "Prediction",
    "Project",
    "Release",
    "Rollouts",
    "Strategy",
    "Workspace",
    "errors",
    "events",
    "open_workspace",
]

_MODULES = {
    "Client": "predict",
    "Decision": "rollout.plan",
    "Diff": "diff",
    "Entry": "journal",
    "Failure": "predict",
    "Finding": "findings",
    "Observed": "observed",
    "Outcome": "journal",
    "Phase": "observed",
    "Prediction": "predict",
    "Project": "project",
    "Release": "release",
    "Rollouts": "rollouts",
    "Strategy": "rollout.plan",
    "Workspace": "workspace",
    "open_workspace": "workspace",
}

if not TYPE_CHECKING:  # a type checker reads the imports above

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            return getattr(import_module(f"deployer.{_MODULES[name]}"), name)
        if name in __all__:
            return import_module(f"deployer.{name}")
        raise AttributeError(f"module 'deployer' has no attribute {name!r}")

    def __dir__() -> list[str]:  # for completion in a notebook
        return sorted({*globals(), *__all__})
