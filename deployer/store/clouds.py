"""Opens an object store through obstore."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore, S3Store

from deployer.errors import ConfigError
from deployer.files import read_bytes
from deployer.proxies import find_proxy, is_loopback
from deployer.store.credentials import Credentials
from deployer.store.location import Location

# A transfer can take a day, but not pause for a minute.
_CLIENT = {"connect_timeout": "10s", "read_timeout": "60s", "timeout": "24h"}
_RETRY = {"max_retries": 4, "retry_timeout": timedelta(seconds=90)}


def connect(location: Location, credentials: Credentials, ca_bundle: Path | None) -> Any:
    """Return obstore's store of a location, whose paths are below the prefix. Sends no request.

    Raises ConfigError if the CA bundle cannot be read, and obstore's errors.
    """
    client: dict[str, Any] = {**_CLIENT, **_loopback_options(location.endpoint)}
    client["allow_http"] = not location.secure
    if ca_bundle:
        try:
            client["root_certificate"] = read_bytes(ca_bundle, 16 << 20)
        except OSError as error:
            raise ConfigError(
                f"cannot read the CA bundle: {error.strerror}", where=f"store.ca-bundle: {ca_bundle}"
            ) from error
    options: dict[str, Any] = {
        "prefix": location.prefix or None,
        "client_options": client,
        "retry_config": _RETRY,
        **credentials.options,
    }
    if location.endpoint:
        options["base_url" if location.scheme == "gs" else "endpoint"] = location.server_url
    if location.scheme == "gs":
        return GCSStore(location.bucket, **options)
    if location.scheme == "az":
        return AzureStore(location.bucket, account_name=location.account, **options)
    return S3Store(
        location.bucket,
        region=location.region,
        virtual_hosted_style_request=location.virtual_hosted,
        unsigned_payload=location.secure,  # without TLS, the signature has to cover the bytes
        **options,
    )


def _loopback_options(endpoint: str) -> dict[str, str]:
    """Exclude a loopback endpoint from the environment's proxy, which obstore would use for it."""
    parts = urlsplit(endpoint)
    proxy = find_proxy(f"{parts.scheme}://elsewhere.invalid")
    if not proxy or not is_loopback(parts.hostname or ""):
        return {}
    excepted = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return {"proxy_url": proxy, "proxy_excludes": f"{parts.hostname},{excepted}"}
