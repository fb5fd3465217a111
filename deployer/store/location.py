"""Where a bucket or a claim is: from `[store]` and the environment, as KServe reads it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from deployer.config import Store
from deployer.errors import ConfigError

_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_BUCKET = re.compile(r"[a-z0-9][-a-z0-9._]{1,221}")
# Characters that no cloud, downloader or URL encodes.
_PREFIX = re.compile(r"[A-Za-z0-9_.=+-]+(/[A-Za-z0-9_.=+-]+)*")
_BLOB_HOST = re.compile(r"(?P<account>[a-z0-9]{3,24})\.blob\.core\.windows\.net")
_FORMS = "Use s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, pvc://CLAIM/PATH or a folder."


class Location(Struct, frozen=True, kw_only=True):
    """A bucket or container, and the prefix of the releases. `endpoint` does not contain the bucket."""

    scheme: Literal["s3", "gs", "az"]
    bucket: str
    prefix: str
    account: str = ""
    endpoint: str = ""
    region: str = ""
    virtual_hosted: bool = False

    @property
    def uri(self) -> str:
        """The storage URI of the prefix, as KServe understands it; it ends in `/`."""
        path = f"{self.bucket}/{self.prefix}/" if self.prefix else f"{self.bucket}/"
        if self.scheme == "az":
            return f"https://{self.account}.blob.core.windows.net/{path}"
        return f"{self.scheme}://{path}"

    @property
    def secure(self) -> bool:
        """Whether the connection uses TLS."""
        return not self.endpoint.startswith("http://")

    @property
    def host(self) -> str:
        """The endpoint's host and port."""
        return self.endpoint.partition("://")[2]

    @property
    def server_url(self) -> str:
        """The endpoint for obstore: with the bucket in the host name if the store is virtual-hosted."""
        scheme = self.endpoint.partition("://")[0]
        return f"{scheme}://{self.bucket}.{self.host}" if self.virtual_hosted else self.endpoint


def locate(config: Store, environment: Mapping[str, str], profile_region: str = "") -> Location:
    """Find where the objects are. Raises ConfigError."""
    scheme, _, rest = config.uri.partition("://")
    if scheme == "s3":
        return _s3(config, rest, environment, profile_region)
    if scheme == "gs":
        bucket, prefix = _split(rest)
        return Location(scheme="gs", bucket=bucket, prefix=prefix, endpoint=config.endpoint or "")
    if scheme == "az":
        account = config.account or _first(environment, "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")
        if not account:
            raise ConfigError(
                "Azure's storage account is not set",
                where="store.account",
                hint="Set it there, or AZURE_STORAGE_ACCOUNT in the environment.",
            )
    elif scheme == "https":
        host, _, rest = rest.partition("/")
        blob = _BLOB_HOST.fullmatch(host)
        if not blob:
            raise _invalid("unsupported https:// address: not Azure's blob storage", _FORMS)
        account = blob["account"]
    else:
        raise _invalid(f"unsupported scheme {scheme}://", _FORMS)
    bucket, prefix = _split(rest)
    # obstore reads these variables itself.
    endpoint = config.endpoint or _first(environment, "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
    return Location(scheme="az", bucket=bucket, prefix=prefix, account=account, endpoint=endpoint.rstrip("/"))


def _s3(config: Store, rest: str, environment: Mapping[str, str], profile_region: str) -> Location:
    bucket, prefix = _split(rest)
    region = (
        config.region
        or _first(environment, "AWS_REGION", "AWS_DEFAULT_REGION")
        or profile_region
        or "us-east-1"
    )
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    endpoint = config.endpoint or _first(environment, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    endpoint = (endpoint or f"https://s3.{region}.{domain}").rstrip("/")
    if not re.fullmatch(r"https?://[^\s/?#@]+", endpoint):
        raise ConfigError(
            "invalid endpoint of S3: it must consist of http:// or https:// and a host",
            where="store.endpoint",
            hint="Use https://s3.example.org, or http://HOST:PORT without TLS.",
        )
    return Location(
        scheme="s3",
        bucket=bucket,
        prefix=prefix,
        endpoint=endpoint,
        region=region,
        virtual_hosted=config.virtual_hosted,
    )


def _first(environment: Mapping[str, str], *names: str) -> str:
    """Return the value of the first variable that is set and not empty, else an empty string."""
    return next((environment[name] for name in names if environment.get(name)), "")


class Claim(Struct, frozen=True):
    """A PersistentVolumeClaim, and the path of the releases in it."""

    name: str
    path: str

    @property
    def uri(self) -> str:
        """The storage URI of the path, as KServe understands it; it ends in `/`."""
        return f"pvc://{self.name}/{self.path}/" if self.path else f"pvc://{self.name}/"

    @property
    def folder(self) -> str:
        """The path relative to the volume's root. It starts with `.`, so no program reads it as an option."""
        return f"./{self.path}" if self.path else "."


def locate_claim(uri: str) -> Claim:
    """Find the claim and the path of `pvc://CLAIM/PATH`. Raises ConfigError."""
    name, _, path = uri.removeprefix("pvc://").partition("/")
    if not _CLAIM.fullmatch(name):
        raise _invalid(f"invalid name of a claim {name!r}", "Use pvc://CLAIM/PATH.")
    return Claim(name, _checked_prefix(path))


def _split(rest: str) -> tuple[str, str]:
    """Split a bucket from the prefix. Raises ConfigError."""
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise _invalid("invalid bucket name", _FORMS)  # which is not quoted: it can contain a password
    return bucket, _checked_prefix(prefix)


def _checked_prefix(prefix: str) -> str:
    """Return a prefix without a trailing `/`, if every downloader reads it the same way."""
    prefix = prefix.rstrip("/")
    if {".", ".."} & set(prefix.split("/")):
        raise _invalid("invalid prefix: it contains . or ..", "Write the whole prefix.")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise _invalid(
            "invalid prefix: it has characters that not every downloader accepts",
            "Use letters, digits, _ . = + - and single slashes.",
        )
    return prefix


def _invalid(what: str, hint: str) -> ConfigError:
    return ConfigError(what, where="store.uri", hint=hint)
