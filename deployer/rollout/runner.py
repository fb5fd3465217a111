"""Performs what the engine says: applies, watches and notes, and hands back what happened."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from deployer.bundle import Bundle
from deployer.errors import KdeployError
from deployer.events import Applied as AppliedEvent
from deployer.events import Emit, Noted, StatusChanged, Warned
from deployer.observed import Observed
from deployer.rollout import engine
from deployer.rollout.plan import Plan
from deployer.targets.protocols import Target


class Runner:
    """Runs rollouts on one target. `seal` adds the Secret, which the journal does not keep, to a bundle."""

    def __init__(self, target: Target, emit: Emit, seal: Callable[[Bundle], Bundle]) -> None:
        self._target, self._emit, self._seal = target, emit, seal
        self._watched: Iterator[Observed] = iter(())

    def run(self, plan: Plan) -> None:
        """Run a rollout to its end. Raises KdeployError where its release does not become ready."""
        state, actions = engine.begin(plan)
        todo = deque(actions)
        while True:
            action = todo.popleft() if todo else None
            if isinstance(action, engine.Finish):
                if action.error:
                    raise action.error
                return
            try:
                event = self._perform(plan, action) if action else self._look()
            except KdeployError as error:
                event = engine.Failed(error)
            if event:
                state, actions = engine.step(state, event)
                todo.extend(actions)

    def _look(self) -> engine.Event:
        observed = next(self._watched, None)
        return engine.Seen(observed) if observed else engine.Elapsed()

    def _perform(self, plan: Plan, action: engine.Action) -> engine.Event | None:
        reference = plan.bundle.reference
        match action:
            case engine.Apply(bundle, entry, expect):
                number = self._target.services.apply(self._seal(bundle), entry, expect=expect)
                self._emit(AppliedEvent(service=str(reference), release=entry.release))
                return engine.Applied(number)
            case engine.Watch(timeout, stable):
                self._watched = self._target.services.watch(reference, timeout, stable)
            case engine.ReadJournal():
                return engine.Read(self._target.journal.entries(reference))
            case engine.Note(number, event):
                try:
                    self._target.journal.note(reference, number, event)
                except KdeployError as error:  # how it ended stays as it is
                    self._emit(Warned(f"cannot note in the journal how the rollout ended: {error}"))
            case engine.Report(observed):
                self._emit(StatusChanged(observed))
            case said:
                self._emit(Noted(said.note))
        return None
