"""Invariants of a record after any sequence of rollouts, successes and failures at any percentage."""

from __future__ import annotations

from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deployer.targets.local.revisions import Record, commit_traffic, note_failure
from tests.local.releases import make_bundle, want

RELEASES = st.sampled_from("abcd")
PERCENTS = st.sampled_from([None, 0, 10, 50, 100])


def applied(record: Record | None, release: str, percent: int | None) -> Record:
    return want(record, make_bundle("demo", release, Path("/store") / release, canary=percent))


class Rollouts(RuleBasedStateMachine):
    record: Record
    last: tuple[str, int | None]

    @initialize(release=RELEASES, percent=PERCENTS)
    def first(self, release: str, percent: int | None) -> None:
        self.record, self.last = applied(None, release, percent), (release, percent)
        self.proven: set[str] = set()

    @rule(release=RELEASES, percent=PERCENTS)
    def roll_out(self, release: str, percent: int | None) -> None:
        serving = self.record.traffic
        self.record, self.last = applied(self.record, release, percent), (release, percent)
        assert self.record.traffic == serving, "applying a release changes no traffic"
        assert self.record.revision(self.record.latest).release == release
        assert not self.record.revision(self.record.latest).failure, "a failed release gets another attempt"

    @precondition(
        lambda self: (
            not any(self.record.revision(line.revision).failure for line in self.record.desired_traffic)
        )
    )
    @rule()
    def become_ready(self) -> None:
        self.proven |= {line.revision for line in self.record.desired_traffic}
        self.record = commit_traffic(self.record)
        assert self.record.traffic == self.record.desired_traffic

    @precondition(lambda self: self.record.latest not in self.proven)
    @rule()
    def fail_to_load(self) -> None:
        serving = self.record.traffic
        self.record = note_failure(self.record, self.record.latest, "ModuleNotFoundError")
        assert self.record.traffic == serving
        assert self.record.latest not in self.record.required, "a release that cannot load is not required"

    @invariant()
    def percentages_add_up_to_100(self) -> None:
        assert sum(line.percent for line in self.record.traffic) in (0, 100)
        assert sum(line.percent for line in self.record.desired_traffic) == 100

    @invariant()
    def revisions_with_traffic_were_ready_and_are_required(self) -> None:
        serving = {line.revision for line in self.record.traffic}
        assert serving <= self.proven
        assert serving <= self.record.required
        assert not any(self.record.revision(name).failure for name in serving)

    @invariant()
    def applying_the_same_release_again_changes_nothing(self) -> None:
        again = applied(self.record, *self.last)
        assert again.traffic == self.record.traffic
        assert applied(again, *self.last) == again
        assert len(again.revisions) == len(self.record.revisions)

    @invariant()
    def a_release_with_traffic_has_one_revision_and_is_in_use(self) -> None:
        releases = [revision.release for revision in self.record.revisions]
        assert len(releases) == len(set(releases))
        serving = {self.record.revision(line.revision).release for line in self.record.traffic}
        assert serving <= self.record.in_use


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(stateful_step_count=25)
