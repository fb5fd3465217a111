"""The output of `kdeploy doctor`."""

from __future__ import annotations

import pytest

from deployer.cli.printers import print_findings
from deployer.errors import DoctorError
from deployer.findings import Finding, failure, ok


def test_a_finding_is_printed_with_where_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    unread = Finding(name="GPU", status="ok", detail="not checked: this user cannot list nodes", remedy="ask")
    broken = failure("release", "it does not exist", "kdeploy.toml: model.handler", "create it")
    with pytest.raises(DoctorError, match="failed checks: release"):
        print_findings([ok("cluster", "Kubernetes 1.36"), unread, broken], "table")
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["GPU: ask", "release: create it"]
    assert "it does not exist (kdeploy.toml: model.handler)" in printed.out
    assert "Kubernetes 1.36\n" in printed.out
