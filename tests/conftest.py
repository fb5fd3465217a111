"""What every test has: a skip that should have run is a failure where CI=true."""

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

# How many examples a test of any input tries, unless it says so: `make unit` takes the profile `quick`,
# `make full` takes `full`. A busy machine is not a failure: what must be fast is measured in bench/.
for _profile, _examples in {"quick": 20, "ci": 100, "full": 1_000}.items():
    settings.register_profile(
        _profile, max_examples=_examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile("full" if "KDEPLOY_TESTS_FULL" in os.environ else "ci")


def pytest_configure() -> None:
    """Let the processes that tests start hear Ctrl-C: one that a shell put into the background does not.

    One of several that run tests ends, and its servers with it, when the one that began them is killed.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        die_with_parent()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Dealer(LoadFileScheduling):
    """Deals out files, but most tests of tests/cluster one by one: they share no more than an API server."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return nodeid if re.match("tests/cluster/test_(?!faults|killed)", file) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return _Dealer(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no process is left with one of them when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI skips nothing: {report.longrepr}"
    return report
