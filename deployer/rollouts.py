"""The rollouts of one project to one target: decide, push, apply, and run to the end.

Everything is decided before the first write. Each later step is idempotent: after a crash, run the rollout
again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from msgspec import structs

from deployer.bundle import Bundle
from deployer.config import check_root, overlays_of
from deployer.diff import compare
from deployer.errors import ConfigError, KdeployError, RolloutFailedError
from deployer.events import Emit, Noted, Unchanged, Warned
from deployer.findings import Finding, failure, ok, refuse
from deployer.journal import JournalEvent, Outcome, plan_entry
from deployer.manifest import render, render_secret
from deployer.observed import Document, Observed, Phase, Reference
from deployer.overlay import overlay_of
from deployer.project import Project
from deployer.provenance import find_provenance
from deployer.release import Release, Traffic
from deployer.rollout.plan import Decision, Plan, Strategy, decide_strategy, decide_traffic
from deployer.rollout.runner import Runner
from deployer.storage_access import StorageAccess
from deployer.store import ModelStore
from deployer.targets.protocols import Target


class Rollouts:
    """Rolls out releases of a project from a model store to a target, with the target's overlays."""

    def __init__(
        self,
        project: Project,
        store: ModelStore,
        target: Target,
        emit: Emit,
        overlays: Sequence[Document] = (),
    ) -> None:
        self.target = target
        self._project, self._store, self._emit, self._overlays = project, store, emit, overlays

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
        """Decide what a rollout of a release would do. Default: the release of the project as it is.

        Writes nothing. Without `look`, the live service is not read. `check` adds findings, also about the
        permissions to `wait`; with `thorough`, even if nothing would change. `preview` has the target
        validate the documents and adds the changes, unless a finding is a failure. `access` replaces the
        model store's.
        """
        release = self._project.find(release_id, self._store) if release_id else self._project.plan()
        services, settings = self.target.services, self._project.settings
        reference = Reference(services.namespace, settings.service(None))
        capabilities = services.capabilities(look=look)
        # The journal is read before the service, so that a rollout in between is noticed.
        newest = self._newest(reference) if look and percent < 100 else None
        live = services.get(reference) if look else None
        standard = capabilities.deployment_mode == "Standard"
        traffic, note = decide_traffic(percent, release.id, live) if look else (Traffic(percent), "")
        access = None if capabilities.local_storage_only else access or self._store.access()
        bundle = render(
            release,
            storage_uri=self._store.uri(release),
            namespace=services.namespace,
            capabilities=capabilities,
            scaling=settings.config.scaling,
            service=reference.name,
            traffic=traffic,
            access=access,
            overlays=self._overlays,
        )
        kept = release.id if live is None or overlay_of(live.document) == bundle.overlay else None
        chosen, caution = decide_strategy(strategy, kept, live.status if live else None, standard=standard)
        if chosen is Strategy.RECREATE:
            bundle = bundle.recreating()
        unchanged = bool(live and services.serves(bundle, live))
        findings: tuple[Finding, ...] = ()
        if check and (thorough or not unchanged):
            self._check_local_storage(capabilities.local_storage_only)
            findings = self._check(release, bundle, wait=wait)
        tried = preview and all(one.status != "failure" for one in findings)
        diffs = [compare(*pair) for pair in services.preview(bundle)] if tried else []
        return Decision(
            release=release,
            bundle=bundle,
            traffic=traffic,
            strategy=chosen,
            capabilities=capabilities,
            live=live,
            newest=newest,
            unchanged=unchanged,
            notes=tuple(filter(None, [note])),
            warnings=tuple(filter(None, [caution, access.caution if access else ""])),
            findings=findings,
            changes=tuple(filter(None, diffs)),
        )

    def role(self, release_id: str | None = None) -> list[Document]:
        """Return the account and the permissions for a rollout of a release. Raises ConfigError.

        If no credentials for the cluster are found, the permissions for a Secret are included.
        """
        try:
            access = self._store.access()
        except ConfigError:
            access = StorageAccess(data={"key": ""})
        return self.target.services.role(self.decide(release_id, look=False, access=access).bundle)

    def report(self, decision: Decision) -> None:
        """Emit the notes and warnings of a decision. Raises one error for all failed checks."""
        for note in decision.notes:
            self._emit(Noted(note))
        for warning in (*refuse(decision.findings), *(() if decision.unchanged else decision.warnings)):
            self._emit(Warned(warning))

    def check_admission(self, bundle: Bundle) -> Finding:
        """Have the target validate the documents of a bundle. Changes nothing."""
        try:
            self.target.services.preview(bundle)
        except KdeployError as error:
            return failure("admission", error.what, error.where or "", error.hint or "")
        return ok("admission", "the target accepts the documents")

    def is_stored(self, release: Release) -> bool | None:
        """Return whether the model store has a release, or None if looking would create a pod."""
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
        """Roll out a release, and wait up to `timeout` seconds if it is given. Default: push the project.

        With `rollback`, a release that does not become ready is replaced by the last one that was. Raises
        KdeployError if nothing was applied or the release does not become ready.
        """
        decision = self.decide(
            release_id, percent=percent, strategy=strategy, check=True, wait=timeout is not None
        )
        self.report(decision)
        release, bundle = decision.release, decision.bundle
        if not release_id:
            self._project.push(self._store)
        if decision.live:  # a rollback restores only a release that was noted as Ready
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

    def _check(self, release: Release, bundle: Bundle, *, wait: bool) -> tuple[Finding, ...]:
        """Return the findings about a bundle; only the target's refusal if it rejects what overlays made."""
        if self._overlays or overlays_of(release.serving):
            try:
                self.target.services.preview(bundle)
            except RolloutFailedError as error:
                return (failure("overlay", error.what, "overlay", error.hint or ""),)
            except KdeployError:
                pass  # the checks find out why
        return tuple(self.target.services.check(bundle, wait=wait))

    def _newest(self, reference: Reference) -> int | None:
        """Return the number of the newest journal entry: 0 without entries, None if it cannot be read."""
        try:
            return max((entry.number for entry in self.target.journal.entries(reference)), default=0)
        except KdeployError:
            return None

    def _seal(self, bundle: Bundle) -> Bundle:
        """Return a bundle of the journal with the current Secret."""
        if bundle.secret or bundle.account is None:
            return bundle
        access = self._store.access()
        return structs.replace(bundle, secret=render_secret(access, bundle.reference) if access else None)

    def _check_local_storage(self, local: bool) -> None:
        """Raise ConfigError if the target reads models from this disk and the store is elsewhere."""
        if not local:
            return
        check_root(self._project.settings.root)
        scheme, separator, _ = self._project.settings.config.store.uri.partition("://")
        if separator and scheme != "file":
            raise ConfigError(
                f"this target reads models from this machine's disk, not from {scheme}://",
                where="store.uri",
                hint="Add `--store model-store` to keep releases in a folder.",
            )


def correct_outcome(target: Target, observed: Observed) -> None:
    """Note that a release is Ready if its journal entry has another result."""
    if observed.phase is not Phase.READY:
        return
    reference, ready = observed.reference, (observed.wanted, observed.percent)
    with contextlib.suppress(KdeployError):
        for entry in target.journal.entries(reference)[-1:]:
            unsettled = entry.outcome not in (Outcome.READY, Outcome.APPLYING)
            if unsettled and (entry.release, entry.percent) == ready:
                target.journal.note(reference, entry.number, JournalEvent(outcome=Outcome.READY))
