"""Copies a release from one model store to another, as it is."""

from __future__ import annotations

import shutil

from deployer.release import Release
from deployer.store.interface import ModelStore, Stored
from deployer.store.store_errors import disk_errors


def copy_release(release: Release, source: ModelStore, destination: ModelStore) -> Stored:
    """Copy a release, and compare every byte of it before the first write.

    A release that the destination has is compared, not written. After an interruption, run it again. Raises
    IntegrityError and StoreError.
    """
    if destination.find(release.name, release.id) is not None:
        stored = Stored(destination.uri(release), 0)
    else:
        with source.archive(release) as archive, destination.stage() as staging:
            with disk_errors("cannot copy the archive", staging.folder):
                shutil.copyfile(archive, staging.archive_path(release.archive.file_name))
            stored = destination.put(release, staging)
    destination.check(release)
    return stored
