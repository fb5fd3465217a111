"""Performs the engine's actions: applies, watches, notes, and returns what happened as events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import ExitStack

from deployer.bundle import Bundle
from deployer.errors import KdeployError
from deployer.events import Applied, Applying, Emit, Warned
from deployer.rollout import engine
from deployer.rollout.plan import Plan
from deployer.targets.protocols import Target, Watch


class Runner:
    """Runs rollouts on one target. `seal` adds the Secret, which the journal does not keep, to a bundle."""

    def __init__(self, target: Target, emit: Emit, seal: Callable[[Bundle], Bundle]) -> None:
        self._target, self._emit, self._seal = target, emit, seal
        self._watch: Watch | None = None
        self._open = ExitStack()

    def run(self, plan: Plan) -> None:
        """Run a rollout to its end. Raises KdeployError if its release does not become ready."""
        with self._open:
            state, actions = engine.begin(plan)
            todo = deque(actions)
            while todo or state.stage is not engine.Stage.DONE:
                try:
                    event = self._perform(plan, todo.popleft()) if todo else self._look()
                except KdeployError as error:
                    event = engine.Failed(error)
                if event:
                    state, actions = engine.step(state, event)
                    todo.extend(actions)
        if state.error:
            raise state.error

    def _look(self) -> engine.Event:
        observed = next(self._watch, None) if self._watch else None
        return engine.Seen(observed) if observed else engine.Elapsed()

    def _perform(self, plan: Plan, action: engine.Action) -> engine.Event | None:
        reference = plan.bundle.reference
        match action:
            case engine.Apply(bundle, entry, expect):
                self._emit(Applying(service=str(reference), release=entry.release))
                number = self._target.services.apply(self._seal(bundle), entry, expect=expect)
                self._emit(Applied(service=str(reference), release=entry.release))
                return engine.Applied(number)
            case engine.Watch(timeout, stable):
                self._watch = self._target.services.watch(reference, timeout, stable)
                self._open.callback(self._watch.close)
            case engine.ReadJournal(look):
                entries = self._target.journal.entries(reference)
                live = self._target.services.get(reference) if look else None
                return engine.Read(entries, live.status if live else None)
            case engine.Note(number, event):
                try:
                    self._target.journal.note(reference, number, event)
                except KdeployError as error:  # this does not change how the rollout ended
                    self._emit(Warned(f"cannot note in the journal how the rollout ended: {error}"))
            case _:
                self._emit(action)
        return None
