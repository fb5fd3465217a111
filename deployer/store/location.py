"""Where a bucket or a claim is: from `[store]` and the environment, written as KServe reads it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

from deployer.config import Store
from deployer.errors import ConfigError

_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_BUCKET = re.compile(r"[a-z0-9][-a-z0-9._]{1,221}")
# Letters that no cloud, no downloader and no URL writes in another way.
_PREFIX = re.compile(r"[A-Za-z0-9_.=+-]+(/[A-Za-z0-9_.=+-]+)*")
_BLOB_HOST = re.compile(r"(?P<account>[a-z0-9]{3,24})\.blob\.core\.windows\.net")
_FORMS = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, pvc://CLAIM/PATH or a folder"


class Location(Struct, frozen=True, kw_only=True):
    """A bucket, or container, and the prefix below which releases lie. `endpoint` has no bucket in it."""

    scheme: Literal["s3", "gs", "az"]
    bucket: str
    prefix: str
    account: str = ""
    endpoint: str = ""
    region: str = ""
    virtual_hosted: bool = False

    @property
    def uri(self) -> str:
        """The storage URI below which releases lie, as KServe understands it; it ends in `/`."""
        path = f"{self.bucket}/{self.prefix}/" if self.prefix else f"{self.bucket}/"
        if self.scheme == "az":
            return f"https://{self.account}.blob.core.windows.net/{path}"
        return f"{self.scheme}://{path}"

    @property
    def secure(self) -> bool:
        """Whether it is reached by TLS."""
        return not self.endpoint.startswith("http://")

    @property
    def server_url(self) -> str:
        """The endpoint as obstore wants it: with the bucket in it where that is part of the host's name."""
        scheme, _, rest = self.endpoint.partition("://")
        return f"{scheme}://{self.bucket}.{rest}" if self.virtual_hosted else self.endpoint


def locate(config: Store, environment: Mapping[str, str], profile_region: str = "") -> Location:
    """Read where the objects are. Raises ConfigError."""
    scheme, _, rest = config.uri.partition("://")
    if scheme not in ("s3", "gs", "az", "https"):
        raise _no_location(f"a model store of scheme {scheme}:// is not supported", f"name {_FORMS}")
    if scheme == "s3":
        return _s3(config, rest, environment, profile_region)
    bucket, prefix = _split(rest)
    if scheme == "gs":
        return Location(scheme="gs", bucket=bucket, prefix=prefix, endpoint=config.endpoint or "")
    if scheme == "https":
        blob = _BLOB_HOST.fullmatch(bucket)
        if not blob:
            raise _no_location(f"https://{bucket} is no model store", "of https:// only Azure's blobs are")
        bucket, prefix = _split(prefix)
        return _azure(config, bucket, prefix, blob["account"], environment)
    account = config.account or next((environment[name] for name in _ACCOUNTS if environment.get(name)), "")
    if not account:
        raise ConfigError(
            "Azure's storage account is not named",
            where="store.account",
            hint="set it there, or AZURE_STORAGE_ACCOUNT in the environment",
        )
    return _azure(config, bucket, prefix, account, environment)


_ACCOUNTS = ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")


def _s3(config: Store, rest: str, environment: Mapping[str, str], profile_region: str) -> Location:
    bucket, prefix = _split(rest)
    region = (
        config.region
        or environment.get("AWS_REGION")
        or environment.get("AWS_DEFAULT_REGION")
        or profile_region
        or "us-east-1"
    )
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    endpoint = (
        config.endpoint
        or environment.get("AWS_ENDPOINT_URL_S3")
        or environment.get("AWS_ENDPOINT_URL")
        or f"https://s3.{region}.{domain}"
    ).rstrip("/")
    if not re.fullmatch(r"https?://[^\s/?#@]+", endpoint):
        raise ConfigError(
            "S3's endpoint is more, or less, than https:// and a host",
            where="store.endpoint",
            hint="https://s3.example.org, or http://HOST:PORT without TLS",
        )
    return Location(
        scheme="s3",
        bucket=bucket,
        prefix=prefix,
        endpoint=endpoint,
        region=region,
        virtual_hosted=config.virtual_hosted,
    )


def _azure(config: Store, bucket: str, prefix: str, account: str, environment: Mapping[str, str]) -> Location:
    variables = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")  # which obstore reads by itself
    endpoint = config.endpoint or next((environment[name] for name in variables if environment.get(name)), "")
    return Location(
        scheme="az",
        bucket=bucket,
        prefix=prefix,
        account=account,
        endpoint=endpoint.rstrip("/"),
    )


class Claim(Struct, frozen=True):
    """A PersistentVolumeClaim, and the path in it below which releases lie."""

    name: str
    path: str

    @property
    def uri(self) -> str:
        """The storage URI below which releases lie, as KServe understands it; it ends in `/`."""
        return f"pvc://{self.name}/{self.path}/" if self.path else f"pvc://{self.name}/"

    @property
    def folder(self) -> str:
        """The folder of the releases, relative to the claim's own; no option to any program."""
        return f"./{self.path}" if self.path else "."


def locate_claim(uri: str) -> Claim:
    """Read where a store of `pvc://CLAIM/PATH` is. Raises ConfigError."""
    name, _, path = uri.removeprefix("pvc://").partition("/")
    if not _CLAIM.fullmatch(name):
        raise _no_location("it names no claim", "name pvc://CLAIM/PATH")
    return Claim(name, _checked_prefix(path))


def _split(rest: str) -> tuple[str, str]:
    """Split a bucket from the prefix; what a downloader would read in another way is refused."""
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise _no_location("it names no bucket", f"name {_FORMS}")
    return bucket, _checked_prefix(prefix)


def _checked_prefix(prefix: str) -> str:
    prefix = prefix.rstrip("/")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise _no_location(
            "its prefix would not reach every downloader as it is",
            "letters, digits, _ . = + - and / in between",
        )
    if {".", ".."} & set(prefix.split("/")):
        raise _no_location("its prefix holds . or ..", "write the prefix out")
    return prefix


def _no_location(what: str, hint: str) -> ConfigError:
    return ConfigError(what, where="store.uri", hint=hint)


def host_of(endpoint: str) -> str:
    """Return an endpoint's host and port, without its scheme."""
    return urlsplit(endpoint).netloc
