"""Turns the errors of disks, object stores and their libraries into ours, with what to do next."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from urllib.parse import quote

from deployer.errors import DiskFullError, StoreError


def disk_error(what: str, where: str, error: OSError) -> StoreError | DiskFullError:
    """Return the error that a file system's refusal stands for."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"{what}: the disk is full", where=where, hint="`kdeploy prune --keep 5` removes old releases"
        )
    hints = {
        errno.EACCES: "give yourself the right to write there",
        errno.EROFS: "the file system is read-only",
    }
    return StoreError(
        f"{what}: {error.strerror}",
        where=where,
        hint=hints.get(error.errno or 0, "check store.uri with `kdeploy config`"),
    )


# What services and libraries write, and what it means; the first that matches counts.
_MEANINGS = (
    (
        r"RequestTimeTooSkewed|x-amz-date header is too|Request date header too old",
        "this machine's clock is wrong",
        "set it, by NTP for example: a request is valid for some minutes around its time",
    ),
    (
        r"NoSuchBucket|ContainerNotFound|specified bucket does not exist|specified container does not exist",
        "there is no such bucket",
        "create it, or correct store.uri; kdeploy does not create buckets",
    ),
    (
        r"AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraint|region '[^']*' is wrong",
        "the bucket is in another region",
        "set store.region to the bucket's own",
    ),
    (
        r"ExpiredToken|TokenRefreshRequired|token (?:has|is) expired",
        "the credentials have expired",
        "sign in again, then retry",
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|failed to authenticate|InvalidToken|Unauthenticated",
        "the credentials are invalid",
        "check where they come from: docs/explanation/model-stores.md lists the places",
    ),
    (
        r"169\.254\.169\.254|metadata\.google\.internal|CredentialsNotLoaded",
        "there are no credentials",
        "set those of the cloud in the environment: docs/explanation/model-stores.md lists the places",
    ),
    (
        r"AccessDenied|AuthorizationPermissionMismatch|AuthorizationFailure|PermissionDenied|Forbidden|\b403\b",
        "these credentials lack a permission",
        "they need to list, read, write and delete objects there",
    ),
    (
        r"UnknownIssuer|CaUsedAsEndEntity|CERTIFICATE_VERIFY_FAILED|invalid peer certificate|certificate",
        "its TLS certificate is not trusted",
        "name the authority that signed it in store.ca-bundle",
    ),
    (
        r"BadScheme|URL scheme is not allowed",
        "it would be read without TLS",
        "write http:// in store.endpoint if that is meant",
    ),
    (
        r"SlowDown|ServerBusy|TooManyRequests|\b429\b|\b503\b",
        "it is too busy",
        "retry: objects that are complete are not sent again",
    ),
    (
        r"onnect|dns error|timed out|Timeout|error sending request|Name or service not known|reset",
        "it cannot be reached",
        "check the network, the proxy and store.endpoint",
    ),
)


def cloud_error(what: str, where: str, text: str) -> StoreError:
    """Return the error that a refusal of an object store stands for, from its scrubbed text."""
    for pattern, meaning, hint in _MEANINGS:
        if re.search(pattern, text):
            return StoreError(f"{what}: {meaning}{_said(text)}", where=where, hint=hint)
    return StoreError(
        f"{what}{_said(text) or ': ' + ' '.join(text.split())[:200]}",
        where=where,
        hint="retry: objects that are complete are not sent again",
    )


def missing_bucket(text: str) -> bool:
    """Whether what is not there is the bucket, and not an object."""
    return re.search(_MEANINGS[1][0], text) is not None


def _said(text: str) -> str:
    """Quote the service's own code and message, which are all of its answer that people can use."""
    found = [re.search(rf"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message")]
    words = [" ".join(match[1].split()) for match in found if match and match[1]]
    return f" ({': '.join(words)[:300]})" if words else ""


_IN_URL = re.compile(r"(?i)\b(sig|X-Amz-Signature|X-Amz-Security-Token|WebIdentityToken)=[^&\s\"')]+")


def scrubbed(text: str, secrets: Iterable[str]) -> str:
    """Return a text without any of the secrets, as they are or as they stand in a URL."""
    for secret in sorted({form for one in secrets for form in (one, quote(one, safe=""))}, key=len)[::-1]:
        if len(secret) > 3:
            text = text.replace(secret, "***")
    # What a URL carries as its right to be asked, whatever put it there.
    return _IN_URL.sub(r"\1=***", text)
