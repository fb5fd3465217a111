"""A target in memory with scripted faults: errors, crashes, stale states, lags, changes by other users."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import TypeVar

from deployer.bundle import Bundle
from deployer.errors import TargetError
from deployer.journal import Entry, JournalEvent, Outcome
from deployer.observed import Live, Observed, Phase, Reference
from deployer.targets.memory import MemoryTarget
from deployer.targets.protocols import Target, Watch
from tests.bundles import DEMO, C, make_bundle, make_entry
from tests.clocks import FakeClock

Answer = TypeVar("Answer")
CALLS_MAX = 400  # a rollout with more calls does not end

_OTHER = make_bundle(C)


class Fault(enum.Enum):
    """The fault of one call."""

    REFUSED = "the call fails and does nothing"
    ANSWER_LOST = "the call succeeds, but its response is lost"
    CRASH_BEFORE = "the command crashes before the call"
    CRASH_AFTER = "the command crashes after the call"
    STALE = "the call returns an earlier state"
    REPLACED = "another user rolls out another release before the call"
    DELETED = "another user deletes the service before the call"
    LAG = "from now on, a release takes longer to become ready"


# After any other fault, an observed Ready can be outdated.
_CURRENT = {Fault.REFUSED, Fault.ANSWER_LOST, Fault.CRASH_BEFORE, Fault.CRASH_AFTER}


class CrashError(Exception):
    """The command crashed."""


class FaultyTarget:
    """Wraps a target in memory; `script` has the faults of the next calls.

    After each call it checks what must always hold.
    """

    def __init__(self, clock: FakeClock) -> None:
        self.memory = MemoryTarget(clock=clock)
        self.script: list[Fault | None] = []
        self.calls = 0
        self.fault: Fault | None = None  # of the last call
        self.faults: set[Fault] = set()
        self._seen: list[Observed] = []
        self._lives: list[Live] = []
        self._last: Observed | None = None
        self._numbers: list[tuple[int, str]] = []
        self._was_ready = False

    @property
    def target(self) -> Target:
        """The three protocols."""
        return Target(services=self, journal=self, reach=self)  # type: ignore[arg-type]  # only what a runner needs

    @property
    def namespace(self) -> str:
        """The default namespace."""
        return self.memory.namespace

    def serves(self, bundle: Bundle, live: Live) -> bool:
        """Return whether a live service is Ready with this bundle."""
        return self.memory.serves(bundle, live)

    def get(self, reference: Reference) -> Live | None:
        """Return the live service."""
        live = self._call(lambda: self.memory.get(reference), seen=self._lives)
        if live:
            self._lives.append(live)
            self._last = live.status
        return live

    def apply(self, bundle: Bundle, entry: Entry, *, expect: int | None = None) -> int:
        """Make a bundle the wanted state."""
        return self._call(lambda: self.memory.apply(bundle, entry, expect=expect))

    def watch(self, reference: Reference, timeout: float, stable: str | None = None) -> Watch:
        """Yield observed states, or earlier ones."""
        watched = self.memory.watch(reference, timeout, stable)
        while observed := self._call(lambda: next(watched, None), seen=self._seen):
            self._seen.append(observed)
            self._last = observed
            yield observed

    def entries(self, reference: Reference) -> list[Entry]:
        """Return the entries of a service."""
        return self._call(lambda: self.memory.entries(reference))

    def note(self, reference: Reference, number: int, event: JournalEvent) -> None:
        """Add an event to an entry."""
        self._call(lambda: self.memory.note(reference, number, event))
        if event.outcome is Outcome.READY:
            self._check_ready(reference, number)

    def _call(self, work: Callable[[], Answer], *, seen: Sequence[Answer] = ()) -> Answer:
        self.calls += 1
        assert self.calls < CALLS_MAX, "the rollout does not end"
        self.fault = fault = self.script.pop(0) if self.script else None
        if fault:
            self.faults.add(fault)
        if fault is Fault.REFUSED:
            raise TargetError("refused")
        if fault is Fault.CRASH_BEFORE:
            raise CrashError
        self._interfere(fault)
        answer = work()
        self._check()
        if fault is Fault.ANSWER_LOST:
            raise TargetError("the response was lost")
        if fault is Fault.CRASH_AFTER:
            raise CrashError
        return seen[-1] if fault is Fault.STALE and seen else answer

    def _interfere(self, fault: Fault | None) -> None:
        if fault is Fault.LAG:
            self.memory.lag += 5
        elif fault is Fault.REPLACED:
            self.memory.apply(_OTHER, make_entry(_OTHER, who="bob@desk"))
        elif fault is Fault.DELETED:
            self.memory.delete(DEMO)
            self._numbers, self._was_ready = [], False

    def _check(self) -> None:
        """Check that a release always answers, and that no entry is lost or renumbered."""
        served = self.memory.served.get(DEMO)
        percents = [percent for _, percent in served.traffic] if served else []
        self._was_ready = self._was_ready or bool(percents)
        assert sum(percents) == (100 if self._was_ready else 0)
        assert not any(name in self.memory.broken for name, _ in (served.traffic if served else ()))
        numbers = [(entry.number, entry.release) for entry in self.memory.entries(DEMO)]
        assert numbers[: len(self._numbers)] == self._numbers
        assert [number for number, _ in numbers] == list(range(1, len(numbers) + 1))
        self._numbers = numbers

    def _check_ready(self, reference: Reference, number: int) -> None:
        """Check that an entry noted as Ready was observed as Ready, and still is if no state was stale."""
        entries = self.memory.entries(reference)
        for entry in entries:
            if entry.number == number and self._last:
                wanted = (entry.release, entry.percent, Phase.READY)
                assert (self._last.wanted, self._last.percent, self._last.phase) == wanted
        if Fault.STALE not in self.faults and self.fault not in (Fault.REPLACED, Fault.DELETED):
            # Another user can have applied the same release again.
            later = {(entry.release, entry.percent) for entry in entries if entry.number >= number}
            assert len(later) == 1, "only the newest wanted release becomes Ready"
        if self.faults - _CURRENT:
            return
        live, newest = self.memory.get(reference), self.memory.entries(reference)[-1]
        assert live
        assert (live.status.phase, live.status.wanted) == (Phase.READY, newest.release)
        shares = {share.release: share.percent for share in live.status.traffic}
        assert shares.get(newest.release, 0) == newest.percent
