"""Decides which releases can be removed from a model store: old ones that no target needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from deployer.errors import KdeployError, StoreError, TargetError
from deployer.release import Release
from deployer.store import ModelStore
from deployer.targets.protocols import Target

Dated = tuple[float, Release]  # a release, and when it was pushed: seconds since the epoch


class Use(Struct, frozen=True):
    """The ids of the releases that targets need, and the targets that could not be read."""

    releases: frozenset[str]
    unreachable: dict[str, KdeployError]

    def require_all(self) -> None:
        """Raise TargetError if a target could not be read."""
        for name, error in self.unreachable.items():
            key = name.partition(" ")[0]  # a namespace that is not in the config can follow
            raise TargetError(
                f"cannot find out which releases target {name} needs: {error}",
                where=f"targets.{key}",
                hint="Run this again when the target is reachable, or add "
                f"`--ignore-target {key}` to remove releases that it might need.",
            ) from error


def read_use(targets: Mapping[str, Target]) -> Use:
    """Read from each target which releases it serves, wants, or has in its journal."""
    used: set[str] = set()
    unreachable: dict[str, KdeployError] = {}
    for name, target in targets.items():
        try:
            # The id is enough: a service can have another name than the model.
            used |= {label.rpartition("/")[2] for label in target.services.releases_in_use()}
        except KdeployError as error:  # noqa: PERF203 - a few targets
            unreachable[name] = error
    return Use(frozenset(used), unreachable)


def find_old(found: Sequence[Dated], use: Use, *, keep: int, min_age: float, now: float) -> list[Dated]:
    """Return the releases that can be removed, oldest first.

    The newest `keep` stay, those in use, and those that were pushed less than `min_age` seconds before `now`;
    0 means no limit, even if the store's clock is ahead. Raises TargetError if a target could not be read.
    """
    use.require_all()
    return [
        (pushed, release)
        for pushed, release in found[: max(len(found) - keep, 0)]
        if release.id not in use.releases and (not min_age or now - pushed >= min_age)
    ]


def remove(store: ModelStore, releases: Iterable[Release]) -> Iterator[Release]:
    """Remove releases and yield each one, also if another process removed it."""
    for release in releases:
        try:
            store.delete(release)
        except StoreError:
            if store.find(release.name, release.id) is not None:
                raise
        yield release
