"""Which releases may be removed from a model store: old ones, of which no target says that it needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from deployer.errors import KdeployError, StoreError, TargetError
from deployer.release import Release
from deployer.store import ModelStore
from deployer.targets.protocols import Target


class Dated(Struct, frozen=True):
    """A release, and when it was pushed: seconds since the epoch."""

    release: Release
    pushed: float


class Use(Struct, frozen=True):
    """The ids of the releases that targets need, and the targets that could not be asked."""

    releases: frozenset[str]
    unasked: dict[str, KdeployError]

    def require_all(self) -> None:
        """Raise TargetError if a target could not be asked."""
        for name, error in self.unasked.items():
            key = name.partition(" ")[0]  # it may be followed by another namespace than the config's
            raise TargetError(
                f"target {name} cannot be asked which releases it needs: {error}",
                where=f"targets.{key}",
                hint=f"run this again when it can be reached, or add --ignore-target {key} "
                "to remove releases that it may need",
            ) from error


def ask_use(targets: Mapping[str, Target]) -> Use:
    """Ask each target which releases it serves, wants, or has in a history."""
    used: set[str] = set()
    unasked: dict[str, KdeployError] = {}
    for name, target in targets.items():
        try:
            # The id alone says which release it is: a service may have another name than the model.
            used |= {label.rpartition("/")[2] for label in target.services.releases_in_use()}
        except KdeployError as error:  # noqa: PERF203 - a few targets
            unasked[name] = error
    return Use(frozenset(used), unasked)


def find_old(
    found: Sequence[tuple[float, Release]], use: Use, *, keep: int, min_age: float, now: float
) -> list[Dated]:
    """Return which releases, the oldest first, may be removed.

    The newest `keep` stay, those in use, and those that were pushed less than `min_age` seconds before `now`;
    0 means no limit, even for a store whose clock is ahead. Raises TargetError if a target did not answer.
    """
    use.require_all()
    return [
        Dated(release, pushed)
        for pushed, release in found[: max(len(found) - keep, 0)]
        if release.id not in use.releases and (not min_age or now - pushed >= min_age)
    ]


def remove(store: ModelStore, old: Sequence[Dated]) -> Iterator[Release]:
    """Remove releases and yield each one that is gone, also where another process removed it."""
    for one in old:
        try:
            store.delete(one.release)
        except StoreError:
            if store.find(one.release.name, one.release.id) is not None:
                raise
        yield one.release
