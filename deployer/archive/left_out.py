"""Which files of a folder or glob are left out of an archive: caches, kdeploy's own files, and secrets.

A file that the config names by its path is never left out.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from deployer.config import FILE_NAME
from deployer.files import is_file, read_bytes

_FOLDERS = {"__pycache__", "__MACOSX"}
_FILES = {".ds_store", ".git", FILE_NAME}

# Files in which programs keep passwords, tokens and private keys; lower case.
_SECRETS = """
    .env .env.* *.env .envrc .netrc _netrc .pypirc .npmrc .pgpass .my.cnf .htpasswd .boto .s3cfg .dockercfg
    .git-credentials .vault-token .kaggle.json kaggle.json kubeconfig kubeconfig.* *.kubeconfig credentials
    credentials.json credentials.csv client_secret*.json application_default_credentials.json
    secrets.toml secrets.json secrets.yaml secrets.yml
    id_rsa id_dsa id_ecdsa id_ed25519 *.p12 *.pfx *.jks *.keystore *.ppk *.kdbx
"""
# Files that can contain a private key, and how it begins.
_KEY_SUFFIXES = {".pem", ".key", ".json", ".crt", ".cer", ".cert"}
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----")
_KEY_FILE_AT_MOST = 64 << 10  # bytes


def is_left_out(path: Path, folder: bool) -> bool:
    """Whether a file or folder is a cache, a virtual environment, or kdeploy's own."""
    if not folder:
        return path.name.lower() in _FILES
    return path.name.startswith(".") or path.name in _FOLDERS or is_file(path / "pyvenv.cfg")


def warn_of_secrets(files: Iterable[tuple[str, Path]]) -> Iterator[str]:
    """Yield a warning about the secrets among the files of a finished archive, which is packed as it is."""
    if names := [name for name, path in files if is_secret(path)]:
        yield f"possible secrets, which everyone who reads the release can read: {', '.join(names)}"


def is_secret(path: Path) -> bool:
    """Whether a file certainly or very likely contains a secret: by its name, or a private key in it."""
    name = path.name.lower()
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in _SECRETS.split()):
        return True
    if path.suffix.lower() not in _KEY_SUFFIXES or not is_file(path):
        return False
    try:
        return bool(_PRIVATE_KEY.search(read_bytes(path, _KEY_FILE_AT_MOST)))
    except OSError:  # too large for a key, or unreadable, which the archive reports
        return False
