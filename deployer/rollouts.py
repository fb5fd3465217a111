"""The rollouts of one project to one target: decide, push, apply, and run to the end.

Everything is decided before the first write, by one function. Each step after it is idempotent, so a command
that died is simply run again.
"""

from __future__ import annotations

import contextlib

from msgspec import structs

from deployer.bundle import Bundle
from deployer.config import check_root
from deployer.decide import Decision, decide
from deployer.diff import compare
from deployer.errors import ConfigError, KdeployError
from deployer.events import Emit, Noted, Unchanged, Warned
from deployer.findings import Finding, failure, ok, refuse
from deployer.journal import JournalEvent, Outcome, plan_entry
from deployer.manifest import render_secret
from deployer.observed import Document, Observed, Phase, Reference
from deployer.project import Project
from deployer.provenance import find_provenance
from deployer.release import Release
from deployer.rollout.plan import Plan, Strategy
from deployer.rollout.runner import Runner
from deployer.storage_access import StorageAccess
from deployer.store import ModelStore
from deployer.targets.protocols import Target


class Rollouts:
    """Rolls a project's releases out to a target, from a model store."""

    def __init__(self, project: Project, store: ModelStore, target: Target, emit: Emit) -> None:
        self.target = target
        self._project, self._store, self._emit = project, store, emit

    def decide(
        self,
        release_id: str | None = None,
        *,
        percent: int = 100,
        strategy: Strategy | None = None,
        look: bool = True,
        check: bool = False,
        thorough: bool = False,
        preview: bool = False,
        wait: bool = True,
        access: StorageAccess | None = None,
    ) -> Decision:
        """Decide what a rollout of a release would do, or of what the config makes. Writes nothing.

        Reads the target once, unless it is not to `look`. With `check`, findings are gathered, about what it
        takes to `wait`, too, and with `thorough` although nothing would change; with `preview`, the target
        tries documents without failures, and changes are told. `access` stands in for the model store's.
        """
        release = self._project.find(release_id, self._store) if release_id else self._project.plan()
        services, settings = self.target.services, self._project.settings
        reference = Reference(services.namespace, release.name)
        capabilities = services.capabilities()
        newest = self._newest(reference) if look and percent < 100 else None  # before what it explains
        live = services.get(reference) if look else None
        decision = decide(
            release,
            live=live,
            looked=look,
            capabilities=capabilities,
            namespace=services.namespace,
            storage_uri=self._store.uri(release),
            scaling=settings.config.scaling,
            access=None if capabilities.local_storage_only else access or self._store.access(),
            percent=percent,
            strategy=strategy,
        )
        bundle = decision.bundle
        decision = structs.replace(decision, newest=newest)
        if live:
            decision = structs.replace(decision, unchanged=services.serves(bundle, live))
        if check and (thorough or not decision.unchanged):
            self._check_local_storage(capabilities.local_storage_only)
            decision = structs.replace(decision, findings=tuple(services.check(bundle, wait=wait)))
        if preview and not any(one.status == "failure" for one in decision.findings):
            changes = (compare(live, after) for live, after in services.preview(bundle))
            decision = structs.replace(decision, changes=tuple(one for one in changes if one))
        return decision

    def role(self, release_id: str | None = None) -> list[Document]:
        """Return the account and the permissions that rolling a release out needs. Raises ConfigError.

        Without credentials that a cluster can use, the permissions for a Secret are included.
        """
        try:
            access = self._store.access()
        except ConfigError:
            access = StorageAccess(data={"key": ""})
        return self.target.services.role(self.decide(release_id, look=False, access=access).bundle)

    def tell(self, decision: Decision) -> None:
        """Tell the notes and warnings of a decision. Raises ConfigError for all that stands in the way."""
        for note in decision.notes:
            self._emit(Noted(note))
        for warning in (*refuse(decision.findings), *(() if decision.unchanged else decision.warnings)):
            self._emit(Warned(warning))

    def admit(self, decision: Decision) -> Finding:
        """Have the target try the documents of a decision. Changes nothing."""
        try:
            self.target.services.preview(decision.bundle)
        except KdeployError as error:
            return failure("admission", error.what, error.where or "", error.hint or "")
        return ok("admission", "the target accepts the documents")

    def is_stored(self, release: Release) -> bool | None:
        """Return whether a release is in the model store; None where looking would make something."""
        store = self._store
        return store.find(release.name, release.id) is not None if store.lookup_is_side_effect_free else None

    def rollout(
        self,
        release_id: str | None = None,
        *,
        percent: int = 100,
        strategy: Strategy | None = None,
        timeout: float | None = None,
        rollback: bool = False,
    ) -> Release:
        """Roll a release out, or what the config makes; wait `timeout` seconds, or not at all.

        With `rollback`, a release that does not become ready is replaced by the last one that was. Raises
        KdeployError where the release does not become ready, or nothing could be applied.
        """
        decision = self.decide(
            release_id, percent=percent, strategy=strategy, check=True, wait=timeout is not None
        )
        self.tell(decision)
        release, bundle = decision.release, decision.bundle
        if not release_id:
            self._project.push(self._store)
        if decision.live:  # a rollback restores only what is known to have been Ready
            correct_outcome(self.target, decision.live.status)
        if decision.unchanged:
            self._emit(Unchanged(service=str(bundle.reference), release=release.id))
            return release
        if release_id:
            self._store.check(release)
        self._store.close()
        provenance = find_provenance(self._project.settings.root, archive=release.archive.digest)
        stable, chosen = decision.traffic.stable, decision.strategy.value
        plan = Plan(
            bundle=bundle,
            entry=plan_entry(bundle, provenance, stable=stable, strategy=chosen),
            timeout=timeout,
            rollback=rollback,
            expect=decision.newest,
            standard=decision.capabilities.deployment_mode == "Standard",
        )
        Runner(self.target, self._emit, self._seal).run(plan)
        return release

    def _newest(self, reference: Reference) -> int | None:
        """Return the number of the journal's newest entry: 0 where there is none, None where unknown."""
        try:
            return max((entry.number for entry in self.target.journal.entries(reference)), default=0)
        except KdeployError:
            return None

    def _seal(self, bundle: Bundle) -> Bundle:
        """Return a bundle of the journal with the Secret that it needs now."""
        if bundle.secret or bundle.account is None:
            return bundle
        access = self._store.access()
        secret = render_secret(access, bundle.reference) if access else None
        return structs.replace(bundle, secret=secret)

    def _check_local_storage(self, local: bool) -> None:
        """Raise ConfigError where the target reads models from this disk, and the store is elsewhere."""
        if not local:
            return
        check_root(self._project.settings.root)
        scheme, separator, _ = self._project.settings.config.store.uri.partition("://")
        if separator and scheme != "file":
            raise ConfigError(
                f"this target reads models from this machine's disk, not from {scheme}://",
                where="store.uri",
                hint="--store model-store keeps releases in a folder",
            )


def correct_outcome(target: Target, observed: Observed) -> None:
    """Note that a release is Ready after all, where its entry does not say so."""
    if observed.phase is not Phase.READY:
        return
    reference, ready = observed.reference, (observed.wanted, observed.percent)
    with contextlib.suppress(KdeployError):
        for entry in target.journal.entries(reference)[-1:]:
            unsettled = entry.outcome not in (Outcome.READY, Outcome.APPLYING)
            if unsettled and (entry.release, entry.percent) == ready:
                target.journal.note(reference, entry.number, JournalEvent(outcome=Outcome.READY))
