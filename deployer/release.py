"""A release: one model archive and how it is to be served, named by its content.

The id is `<version>-<12 hex>`, the hex being of the digest over everything but traffic, so the same
inputs are the same release on every machine and a promotion makes no new one. The runtime is among them: a
newer kdeploy, with another runtime, makes other releases, and rolls older ones out on the runtime they had.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, structs

from deployer.archive import Archive, MemberRecord
from deployer.archive.members import digest_records
from deployer.config import Config, Serving
from deployer.errors import IntegrityError, NotFoundError
from deployer.properties import render_properties

SCHEMA = 2
ID_PATTERN = r"^[A-Za-z0-9][-A-Za-z0-9_.]*-[0-9a-f]{12}$(?!\n)"


class ArchiveRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """What a release remembers of its model archive, enough to verify it byte for byte."""

    file_name: str
    digest: str
    members: tuple[MemberRecord, ...]

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
    runtime: dict[str, Any] | None = (
        None  # the spec of kdeploy's ServingRuntime; None on one of the cluster's
    )

    @property
    def label(self) -> str:
        """`NAME/ID`, as people read it."""
        return f"{self.name}/{self.id}"


class _Schema(Struct):
    """What tells the releases of one version of kdeploy from those of another."""

    schema: int


class Traffic(Struct, frozen=True):
    """The percentage of requests that a release is to get, and the release that gets the rest.

    Never part of a release's identity.
    """

    percent: Annotated[int, Meta(ge=0, le=100)] = 100
    stable: str | None = None


def plan_release(config: Config, archive: Archive, runtime: dict[str, Any] | None = None) -> Release:
    """Name the release that a config and a sealed archive make. Pure: writes nothing.

    `runtime` is the spec of kdeploy's ServingRuntime; a release on a runtime of the cluster's own has none.
    """
    record = ArchiveRecord(
        file_name=archive.file_name,
        digest=archive.digest,
        members=archive.records,
    )
    properties = render_properties(config, requirements=config.model.requirements_file is not None)
    release = Release(
        id=f"{config.model.version}-{'0' * 12}",
        name=config.model.name,
        version=config.model.version,
        archive=record,
        serving=config.serving,
        config_properties=properties,
        runtime=None if config.serving.runtime else runtime,
    )
    return structs.replace(release, id=_identify(release))


def _identify(release: Release) -> str:
    identity = {
        "schema": SCHEMA,
        "name": release.name,
        "version": release.version,
        "archive": release.archive.digest,
        "serving": release.serving,
        "config_properties": release.config_properties,
        "runtime": release.runtime,
    }
    digest = hashlib.sha256(msgspec.json.encode(identity, order="deterministic")).hexdigest()
    return f"{release.version}-{digest[:12]}"


def encode_release(release: Release) -> bytes:
    """Encode a release as the text of its `release.json`."""
    return msgspec.json.format(msgspec.json.encode(release)) + b"\n"


def decode_release(data: bytes, *, where: str) -> Release:
    """Decode a `release.json` and check that what it says is what its id was made of.

    Raises IntegrityError, naming `where` it was read.
    """
    hint = f"remove what is below {where.rpartition('/')[0]}/ and push it again"
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema != SCHEMA:
            what = f"it has schema {schema}, and this kdeploy reads schema {SCHEMA}"
            raise IntegrityError(what, where=where, hint=hint)
        release = msgspec.json.decode(data, type=Release)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"it is not a release.json: {error}", where=where, hint=hint) from error
    archive = release.archive
    if release.id != _identify(release) or archive.digest != digest_records(archive.members):
        raise IntegrityError(
            f"its content is not what release {release.id} was made of", where=where, hint=hint
        )
    return release


def check_release_id(text: str) -> str:
    """Return `text` if it has the form of a release id; a path or a pattern never gets further."""
    if not re.match(ID_PATTERN, text):
        raise NotFoundError(
            f"invalid release ID {text!r}",
            hint="an id looks like 1.0-3f2a9c71d0be; `kdeploy releases` lists them",
        )
    return text
