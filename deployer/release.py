"""A release: one model archive and how it is to be served, named by its content.

The id is `<version>-<12 hex>`, the hex being of the digest over everything but traffic, so the same
inputs are the same release on every machine and a promotion makes no new one.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from deployer.archive import Archive, Entry
from deployer.archive.members import digest_entries
from deployer.config import Config, Serving
from deployer.errors import IntegrityError, NotFoundError
from deployer.properties import render_properties

SCHEMA = 1
ID_PATTERN = r"^[A-Za-z0-9][-A-Za-z0-9_.]*-[0-9a-f]{12}$(?!\n)"


class ArchiveRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """What a release remembers of its model archive, enough to verify it byte for byte."""

    file_name: str
    digest: str
    members: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """The bytes of all members together."""
        return sum(member.size for member in self.members)


class Release(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is pushed, rolled out and undone to. Immutable; `release.json` is this, encoded."""

    schema: Annotated[int, Meta(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    id: Annotated[str, Meta(pattern=ID_PATTERN)]
    name: str
    version: str
    archive: ArchiveRecord
    serving: Serving
    config_properties: str

    @property
    def label(self) -> str:
        """`NAME/ID`, as people read it."""
        return f"{self.name}/{self.id}"


class Traffic(Struct, frozen=True):
    """The percentage of requests that a release is to get, and the release that gets the rest.

    Never part of a release's identity.
    """

    percent: Annotated[int, Meta(ge=0, le=100)] = 100
    stable: str | None = None


def plan_release(config: Config, archive: Archive) -> Release:
    """Name the release that a config and a sealed archive make. Pure: writes nothing."""
    record = ArchiveRecord(
        file_name=archive.file_name,
        digest=archive.digest,
        members=archive.entries,
    )
    properties = render_properties(config, requirements=config.model.requirements_file is not None)
    return Release(
        id=_identify(config.model.version, config.model.name, record.digest, config.serving, properties),
        name=config.model.name,
        version=config.model.version,
        archive=record,
        serving=config.serving,
        config_properties=properties,
    )


def _identify(version: str, name: str, archive_digest: str, serving: Serving, properties: str) -> str:
    identity = {
        "schema": SCHEMA,
        "name": name,
        "version": version,
        "archive": archive_digest,
        "serving": serving,
        "config_properties": properties,
    }
    digest = hashlib.sha256(msgspec.json.encode(identity, order="deterministic")).hexdigest()
    return f"{version}-{digest[:12]}"


def encode_release(release: Release) -> bytes:
    """Encode a release as the text of its `release.json`."""
    return msgspec.json.format(msgspec.json.encode(release)) + b"\n"


def decode_release(data: bytes, *, where: str) -> Release:
    """Decode a `release.json` and check that what it says is what its id was made of.

    Raises IntegrityError, naming `where` it was read.
    """
    hint = f"remove what is below {where.rpartition('/')[0]}/ and push it again"
    try:
        release = msgspec.json.decode(data, type=Release)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"it is no release.json: {error}", where=where, hint=hint) from error
    archive = release.archive
    true_id = _identify(
        release.version, release.name, archive.digest, release.serving, release.config_properties
    )
    if release.id != true_id or archive.digest != digest_entries(archive.members):
        raise IntegrityError(
            f"its content is not what release {release.id} was made of", where=where, hint=hint
        )
    return release


def check_release_id(text: str) -> str:
    """Return `text` if it has the form of a release id; a path or a pattern never gets further."""
    if not re.match(ID_PATTERN, text):
        raise NotFoundError(
            f"{text!r} is no release id",
            hint="an id looks like 1.0-3f2a9c71d0be; `kdeploy releases` lists them",
        )
    return text
