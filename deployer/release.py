"""A release: one model archive with its serving settings, named by its content.

The ID is `<version>-<12 hex>`, from the digest of everything except traffic and replicas. So the same inputs
are the same release on every machine, and a promotion makes no new one. The digest covers the runtime: a
newer kdeploy with another runtime makes other releases, and rolls older ones out on the runtime they had.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, structs

from deployer.archive import Archive, MemberRecord
from deployer.archive.members import digest_records
from deployer.config import Config, Serving
from deployer.errors import IntegrityError, NotFoundError
from deployer.properties import render_properties

SCHEMA = 2
# The settings of the first releases, which every record has. It has later ones only if they are set, so that
# a release keeps its record and its ID when kdeploy gets another setting.
_FIRST_SETTINGS = frozenset(
    {
        *("protocol_version", "image", "gpu_image", "runtime", "min_workers", "max_workers", "batch_size"),
        *("max_batch_delay", "response_timeout", "drain_seconds", "startup_timeout", "gpu", "cpu", "memory"),
        *("env", "max_request_size", "max_response_size"),
    }
)
_PART_OF_AN_ID = r"^[A-Za-z0-9][-A-Za-z0-9_.]*$(?!\n)"
ID_PATTERN = r"^[A-Za-z0-9][-A-Za-z0-9_.]*-[0-9a-f]{12}$(?!\n)"


class ArchiveRecord(Struct, frozen=True, forbid_unknown_fields=True):
    """The record of a model archive: enough to verify it byte for byte."""

    file_name: str
    digest: str
    members: tuple[MemberRecord, ...]

    @property
    def size(self) -> int:
        """The size of all members, in bytes."""
        return sum(member.size for member in self.members)


class Release(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is pushed and rolled out. Immutable. `release.json` is its encoding."""

    schema: Annotated[int, Meta(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    id: Annotated[str, Meta(pattern=ID_PATTERN)]
    name: str
    version: str
    archive: ArchiveRecord
    serving: Serving
    config_properties: str
    runtime: dict[str, Any] | None = None  # the spec of kdeploy's ServingRuntime; None on the cluster's own

    @property
    def label(self) -> str:
        """`NAME/ID`, for messages."""
        return f"{self.name}/{self.id}"


class _Schema(Struct):
    """The part of a `release.json` that every version of kdeploy can read."""

    schema: int


class Traffic(Struct, frozen=True):
    """The percentage of requests for a release, and the release that gets the rest.

    Not part of a release's identity.
    """

    percent: Annotated[int, Meta(ge=0, le=100)] = 100
    stable: str | None = None


def plan_release(config: Config, archive: Archive, runtime: dict[str, Any] | None = None) -> Release:
    """Return the release of a config and an archive whose digests are all known. Pure.

    `runtime` is the spec of kdeploy's ServingRuntime, or None if the release uses a runtime of the cluster.
    """
    release = Release(
        id=f"{config.model.version}-{'0' * 12}",
        name=config.model.name,
        version=config.model.version,
        archive=ArchiveRecord(archive.file_name, archive.digest, archive.records),
        serving=config.serving,
        config_properties=render_properties(config, requirements=config.model.requirements_file is not None),
        runtime=None if config.serving.runtime else runtime,
    )
    return structs.replace(release, id=_identify(release))


def _identify(release: Release) -> str:
    """Return the ID of a release: a digest of all its fields, and of its archive's digest."""
    identity = {**structs.asdict(_written(release)), "archive": release.archive.digest}
    del identity["id"]
    digest = hashlib.sha256(msgspec.json.encode(identity, order="deterministic")).hexdigest()
    return f"{release.version}-{digest[:12]}"


def encode_release(release: Release) -> bytes:
    """Return the content of a release's `release.json`."""
    return msgspec.json.format(msgspec.json.encode(_written(release))) + b"\n"


def _written(release: Release) -> Release:
    """Return a release without the later settings that have their defaults, as its record has it."""
    defaults = structs.asdict(Serving())
    unset = {
        name: UNSET
        for name, value in structs.asdict(release.serving).items()
        if name not in _FIRST_SETTINGS and value == defaults[name]
    }
    return structs.replace(release, serving=structs.replace(release.serving, **unset))


def decode_release(data: bytes, *, where: str) -> Release:
    """Decode a `release.json`, and check that its content matches its ID.

    Raises IntegrityError, which names `where` it was read.
    """
    hint = f"Remove everything below {where.rpartition('/')[0]}/ and push the release again."
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema != SCHEMA:
            what = f"unsupported schema {schema}: this kdeploy reads schema {SCHEMA}"
            raise IntegrityError(what, where=where, hint=hint)
        release = msgspec.json.decode(data, type=Release)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"invalid release.json: {error}", where=where, hint=hint) from error
    archive = release.archive
    if release.id != _identify(release) or archive.digest != digest_records(archive.members):
        what = f"the content does not match release ID {release.id}"
        raise IntegrityError(what, where=where, hint=hint)
    return release


def is_complete_id(text: str) -> bool:
    """Return whether `text` is a release ID. Raises NotFoundError if it cannot even be a part of one."""
    if not re.match(_PART_OF_AN_ID, text):
        raise NotFoundError(
            f"invalid release ID {text!r}",
            hint="An ID looks like 1.0-3f2a9c71d0be. Run `kdeploy releases` to list them.",
        )
    return bool(re.match(ID_PATTERN, text))


def match_ids(text: str, ids: Collection[str]) -> list[str]:
    """Return the IDs that begin with a text, or whose 12 hex digits do."""
    return [one for one in ids if one.startswith(text) or one.rpartition("-")[2].startswith(text)]
