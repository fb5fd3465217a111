"""One decision: what a rollout would apply, from a release and from what is live."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.config import Scaling
from deployer.decide import Decision, decide
from deployer.errors import ConfigError
from deployer.observed import Capabilities, Live, Observed, Phase, Revision, Share
from deployer.release import Traffic
from deployer.rollout.plan import Strategy
from deployer.storage_access import StorageAccess
from tests.bundles import DEMO, KNATIVE, A, B, make_release

STANDARD = Capabilities(deployment_mode="Standard", canary=False)


def live(percent: int = 100, **more: Any) -> Live:
    return Live(
        {}, Observed(reference=DEMO, wanted=A, phase=Phase.READY, traffic=(Share("r1", A, percent),), **more)
    )


def decided(**more: Any) -> Decision:
    given = {"live": live(stable=A), "looked": True, "capabilities": KNATIVE, "scaling": Scaling(), **more}
    return decide(make_release(B), namespace="default", storage_uri="s3://models/demo/", **given)


def test_a_release_gets_all_requests() -> None:
    decision = decided()
    assert (decision.release.id, decision.bundle.release, decision.bundle.percent) == (B, B, 100)
    assert (decision.traffic, decision.strategy) == (Traffic(), Strategy.ROLLING)
    assert (decision.notes, decision.warnings, decision.findings, decision.changes) == ((), (), (), ())
    assert not decision.unchanged


def test_a_canary_stands_beside_the_stable_release() -> None:
    decision = decided(percent=10)
    assert (decision.traffic, decision.bundle.percent) == (Traffic(10, A), 10)


def test_a_first_release_gets_all_requests_and_a_note_says_so() -> None:
    decision = decided(live=None, percent=10)
    assert decision.bundle.percent == 100
    assert "first release" in decision.notes[0]


def test_where_nobody_looked_the_traffic_is_as_asked_for() -> None:
    decision = decided(live=None, looked=False, percent=10)
    assert (decision.traffic, decision.bundle.percent, decision.notes) == (Traffic(10), 10, ())


def test_scaling_is_in_the_documents_and_not_in_the_release() -> None:
    decision = decided(scaling=Scaling(min_replicas=2, max_replicas=3))
    predictor = decision.bundle.service["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 3)
    assert decision.bundle.release == B


def test_the_cost_of_a_strategy_and_a_caution_are_warnings() -> None:
    stuck = live(0, revisions=(Revision("r1", A, pods=1),))
    access = StorageAccess(data={"KEY": "x"}, caution="the token expires in an hour")
    decision = decided(live=stuck, capabilities=STANDARD, access=access)
    assert decision.strategy is Strategy.RECREATE
    assert decision.bundle.service["spec"]["predictor"]["deploymentStrategy"] == {"type": "Recreate"}
    assert decision.warnings == (
        f"no release answers requests, so kdeploy stops the pods of {A} first",
        "the token expires in an hour",
    )
    assert decision.bundle.secret


def test_a_strategy_that_the_target_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="Standard mode"):
        decided(strategy=Strategy.RECREATE)
