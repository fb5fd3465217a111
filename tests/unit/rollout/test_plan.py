"""The traffic of a rollout, and how it replaces pods."""

from __future__ import annotations

from typing import Any

import pytest

from deployer.errors import ConfigError
from deployer.observed import Live, Observed, Phase, Revision, Share
from deployer.release import Traffic
from deployer.rollout.plan import Strategy, decide_strategy, decide_traffic
from tests.bundles import DEMO, A, B


def live(release: str, *shares: tuple[str, int], running: tuple[str, ...] = (), **more: Any) -> Live:
    traffic = tuple(Share(f"r{number}", one, percent) for number, (one, percent) in enumerate(shares))
    revisions = tuple(Revision(f"r{number}", one, pods=1) for number, one in enumerate(running))
    observed = Observed(
        reference=DEMO, wanted=release, phase=Phase.READY, traffic=traffic, revisions=revisions, **more
    )
    return Live({}, observed)


class TestTraffic:
    def test_a_rollout_gets_all_requests(self) -> None:
        assert decide_traffic(100, B, None) == (Traffic(), "")

    def test_a_canary_shares_traffic_with_the_stable_release(self) -> None:
        assert decide_traffic(10, B, live(A, (A, 100), stable=A)) == (Traffic(10, A), "")
        assert decide_traffic(50, B, live(B, (B, 10), (A, 90), stable=A)) == (Traffic(50, A), "")
        assert decide_traffic(10, B, live(A, (A, 100))) == (Traffic(10, A), "")  # no recorded stable release

    @pytest.mark.parametrize("before", [None, live(A)])
    def test_a_first_release_gets_all_requests(self, before: Live | None) -> None:
        traffic, note = decide_traffic(10, B, before)
        assert traffic == Traffic()
        assert note == f"{B} is the first release: it gets all requests, not 10%"

    @pytest.mark.parametrize("percent", [0, 10, 99])
    def test_a_fully_rolled_out_release_keeps_all_requests(self, percent: int) -> None:
        traffic, note = decide_traffic(percent, B, live(B, (B, 100), stable=B))
        assert traffic == Traffic()
        assert "is already rolled out" in note

    def test_the_stable_release_is_not_a_canary_of_itself(self) -> None:
        assert decide_traffic(10, A, live(B, (B, 10), (A, 90), stable=A))[0] == Traffic()


class TestStrategy:
    def test_recreate_warns_about_the_outage(self) -> None:
        strategy, warning = decide_strategy(Strategy.RECREATE, B, live(A, (A, 100)).status, standard=True)
        assert strategy is Strategy.RECREATE
        assert "is unavailable" in warning

    @pytest.mark.parametrize(
        "stuck", [live(A, running=(A,)), live(B, running=(A, B)), live(B, (A, 0), running=(A,))]
    )
    def test_old_pods_stop_first_if_no_release_answers(self, stuck: Live) -> None:
        assert decide_strategy(None, B, stuck.status, standard=True) == (
            Strategy.RECREATE,
            f"no release answers requests, so kdeploy stops the pods of {A} first",
        )

    @pytest.mark.parametrize(
        ("asked", "before", "standard"),
        [
            (None, live(A, (A, 100), running=(A,)), True),
            (None, live(B, running=(B,)), True),
            (None, live(A), True),
            (None, None, True),
            (None, live(A, running=(A,)), False),
            (Strategy.ROLLING, live(A, running=(A,)), True),
        ],
    )
    def test_otherwise_new_pods_start_first(
        self, asked: Strategy | None, before: Live | None, standard: bool
    ) -> None:
        assert decide_strategy(asked, B, before and before.status, standard=standard) == (
            Strategy.ROLLING,
            "",
        )

    def test_pods_without_the_current_overlay_stop_first_too(self) -> None:
        for seen, chosen in (
            (live(B, running=(B,)), Strategy.RECREATE),
            (live(B, (B, 100)), Strategy.ROLLING),
        ):
            assert decide_strategy(None, None, seen.status, standard=True)[0] is chosen

    def test_recreate_needs_standard_mode(self) -> None:
        with pytest.raises(ConfigError, match="Standard mode"):
            decide_strategy(Strategy.RECREATE, B, None, standard=False)
