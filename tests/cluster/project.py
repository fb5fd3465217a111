"""Writes a small project for commands on a cluster."""

from __future__ import annotations

from pathlib import Path

from deployer.config import Store
from tests.stores.fixtures import IN_CLUSTER

CONFIG = """
[model]
name = "digits"
version = "1.0"
handler = "handler.py"
serialized-file = "weights.pt"

[targets.production]
kind = "kserve"
deployment-mode = "Standard"
wait-window = {window}
"""


def write_project(folder: Path, store: Store, *, window: float = 0.2) -> Path:
    """Write a project that uses a model store; return its folder."""
    folder.mkdir()
    where = f'\n[store]\nuri = "{store.uri}"\nendpoint = "{store.endpoint}"\n'
    where += f'cluster-endpoint = "{store.cluster_endpoint or IN_CLUSTER}"\n'
    (folder / "kdeploy.toml").write_text(CONFIG.format(window=window) + where)
    (folder / "handler.py").write_text("def handle(data, context):\n    return data\n")
    (folder / "weights.pt").write_bytes(b"w" * 1000)
    return folder
