"""Setup for every test: example counts, the order of files, and skips that fail under CI=true."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from tests.children import die_with_parent

pytest_plugins = ["tests.stores.fixtures"]

# The number of examples of a hypothesis test: `make unit` uses the profile `quick`, `make full` uses `full`.
# There are no deadlines, because the machine can be busy; bench/ measures speed.
for _profile, _examples in {"quick": 20, "ci": 100, "full": 1_000}.items():
    settings.register_profile(
        _profile, max_examples=_examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile("full" if "KDEPLOY_TESTS_FULL" in os.environ else "ci")


def pytest_configure() -> None:
    """Let Ctrl-C reach child processes, also if a shell started the tests in the background.

    A worker of pytest-xdist ends, with its servers, when the main process is killed.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        die_with_parent()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Dealer(LoadFileScheduling):
    """Distributes files to workers, and the guides and most tests in tests/cluster one by one."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return nodeid if re.match("tests/system|tests/cluster/test_(?!faults|killed)", file) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return _Dealer(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but CI=true does not allow skips: {report.longrepr}"
    return report
