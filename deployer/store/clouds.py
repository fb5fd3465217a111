"""Opens an object store through obstore, with what was found of credentials; imported where one is opened."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deployer.errors import ConfigError
from deployer.files import read_bytes
from deployer.proxies import find_proxy, is_loopback
from deployer.store.credentials import GOOGLE_FILE, Credentials
from deployer.store.location import Location

# A body may take long, but not to say nothing for a minute.
_CLIENT = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "24h"}
_RETRY = {"max_retries": 4, "retry_timeout": timedelta(seconds=90)}


def connect(location: Location, credentials: Credentials, ca_bundle: Path | None) -> Any:
    """Return obstore's store of a location, whose paths are below the prefix. Asks nobody yet.

    Raises ConfigError where the CA bundle cannot be read; obstore's own errors for what it refuses.
    """
    client: dict[str, Any] = {**_CLIENT, **_past_proxies(location.endpoint)}
    client["allow_http"] = not location.secure
    if ca_bundle:
        try:
            client["root_certificate"] = read_bytes(ca_bundle, 16 << 20)
        except OSError as error:
            raise ConfigError(
                f"the CA bundle cannot be read: {error.strerror}", where=f"store.ca-bundle: {ca_bundle}"
            ) from error
    opened = {"s3": _s3, "gs": _gcs, "az": _azure}[location.scheme]
    options = {"prefix": location.prefix or None, "client_options": client, "retry_config": _RETRY}
    return opened(location, credentials, options)


def _past_proxies(endpoint: str) -> dict[str, str]:
    """Keep a loopback endpoint off the environment's proxy, which obstore would use for it, too."""
    parts = urlsplit(endpoint)
    proxy = find_proxy(f"{parts.scheme}://elsewhere.invalid")
    if not proxy or not is_loopback(parts.hostname or ""):
        return {}
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return {"proxy_url": proxy, "proxy_excludes": f"{parts.hostname},{excepted}"}


def _s3(location: Location, credentials: Credentials, options: dict[str, Any]) -> Any:
    from obstore.store import S3Store

    keys = {"AWS_ACCESS_KEY_ID": "access_key_id", "AWS_SECRET_ACCESS_KEY": "secret_access_key"}
    keys["AWS_SESSION_TOKEN"] = "session_token"  # noqa: S105 - a name
    own: dict[str, Any] = {
        # obstore wants the bucket within the endpoint where it is part of the host's name.
        "endpoint": location.bucket_url if location.virtual_hosted else location.endpoint,
        "region": location.region,
        "virtual_hosted_style_request": location.virtual_hosted,
        **{keys[name]: value for name, value in credentials.data.items()},
    }
    return S3Store(location.bucket, **own, **options)


def _gcs(location: Location, credentials: Credentials, options: dict[str, Any]) -> Any:
    from obstore.store import GCSStore

    own: dict[str, Any] = {}
    if location.endpoint:
        own["base_url"] = location.endpoint
    if credentials.lasting and credentials.data:
        own["service_account_key"] = credentials.data[GOOGLE_FILE]
    return GCSStore(location.bucket, **own, **options)


def _azure(location: Location, credentials: Credentials, options: dict[str, Any]) -> Any:
    from obstore.store import AzureStore

    names = {
        "AZURE_STORAGE_ACCESS_KEY": "account_key",
        "AZ_CLIENT_ID": "client_id",
        "AZ_CLIENT_SECRET": "client_secret",
        "AZ_TENANT_ID": "tenant_id",
    }
    own: dict[str, Any] = {names[name]: value for name, value in credentials.data.items() if name in names}
    if credentials.sas:
        own["sas_key"] = credentials.sas
    if location.endpoint:
        own["endpoint"] = location.endpoint
    return AzureStore(location.bucket, account_name=location.account, **own, **options)
