"""Opens the model store that a config names; only this module knows every kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deployer.config import Store
from deployer.store.interface import ModelStore

if TYPE_CHECKING:
    from deployer.store.volume_shell import Shell


def open_store(config: Store, root: Path, shell: Shell | None = None) -> ModelStore:
    """Open the model store that a config names; a relative folder is relative to `root`.

    `shell` runs in the volume of a claim. Raises ConfigError.
    """
    scheme, separator, rest = config.uri.partition("://")
    if not separator or scheme == "file":
        from deployer.store.folder import FolderStore

        return FolderStore(root / (rest if separator else config.uri))
    if scheme == "pvc" and shell:
        from deployer.store.pvc import ClaimStore

        return ClaimStore(config, shell, root)
    from deployer.store.objects import ObjectStore

    return ObjectStore(config, root)
