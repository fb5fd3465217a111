"""Turns the errors of disks, object stores and their libraries into ours, with what to do next."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from deployer.errors import DiskFullError, StoreError

PRUNE = "Run `kdeploy prune --keep 5` to remove old releases"
_RETRY = "Retry: objects that are complete are not sent again."
_DISK_HINTS = {
    errno.EACCES: "Give yourself permission to read and write there, or correct `store.uri`.",
    errno.EROFS: "The file system is read-only: correct `store.uri`, or remount it.",
    errno.ENOTDIR: "Set `store.uri` to a folder, or remove the file.",
}


def disk_error(what: str, where: str | Path, error: OSError) -> StoreError | DiskFullError:
    """Return our error for one of a file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"{what}: the disk is full", where=str(where), hint=f"{PRUNE}.")
    hint = _DISK_HINTS.get(error.errno or 0, "Check `store.uri` with `kdeploy config`.")
    reason = "a file is in the place of a folder" if error.errno == errno.ENOTDIR else error.strerror
    return StoreError(f"{what}: {reason}", where=str(where), hint=hint)


@contextmanager
def disk_errors(what: str, where: str | Path) -> Iterator[None]:
    """Turn each OSError into ours. Raises StoreError, DiskFullError."""
    try:
        yield
    except OSError as error:
        raise disk_error(what, where, error) from error


# Patterns of what services and libraries write, the reason, and what to do. The first match counts.
_NO_BUCKET = (
    r"NoSuchBucket|ContainerNotFound|specified bucket does not exist|specified container does not exist"
)
_REASONS = (
    (
        r"RequestTimeTooSkewed|x-amz-date header is too|Request date header too old",
        "this machine's clock is wrong",
        "Set the clock, by NTP for example: a request is valid for a few minutes only.",
    ),
    (
        _NO_BUCKET,
        "the bucket does not exist",
        "Create it, or correct `store.uri`; kdeploy does not create buckets.",
    ),
    (
        r"AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocationConstraint|region '[^']*' is wrong",
        "the bucket is in another region",
        "Set `store.region` to the bucket's region.",
    ),
    (
        r"ExpiredToken|TokenRefreshRequired|token (?:has|is) expired",
        "the credentials have expired",
        "Sign in again, then retry.",
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|failed to authenticate|InvalidToken|Unauthenticated",
        "the credentials are invalid",
        "Correct them in the environment or in the files of the cloud's command line tool.",
    ),
    (
        r"169\.254\.169\.254|metadata\.google\.internal|CredentialsNotLoaded",
        "no credentials found",
        "Set them in the environment, or sign in with the cloud's command line tool.",
    ),
    (
        r"AccessDenied|AuthorizationPermissionMismatch|AuthorizationFailure|PermissionDenied|Forbidden|\b403\b",
        "these credentials lack a permission",
        "Allow them to list, read, write and delete objects in the bucket.",
    ),
    (
        r"UnknownIssuer|CaUsedAsEndEntity|CERTIFICATE_VERIFY_FAILED|invalid peer certificate|certificate",
        "the server's TLS certificate is not trusted",
        "Set `store.ca-bundle` to the certificate of the CA that signed it.",
    ),
    (
        r"BadScheme|URL scheme is not allowed",
        "the server's address is not https://",
        "To allow plain HTTP, set `store.endpoint` to an http:// address.",
    ),
    (r"SlowDown|ServerBusy|TooManyRequests|\b429\b|\b503\b", "the server is too busy", _RETRY),
    (
        r"onnect|dns error|timed out|Timeout|error sending request|Name or service not known|reset",
        "cannot connect to the server",
        "Check the network, the proxy and `store.endpoint`.",
    ),
)


def cloud_error(what: str, where: str, text: str) -> StoreError:
    """Return our error for the scrubbed text of an object store's error."""
    reason, hint = next(
        ((reason, hint) for pattern, reason, hint in _REASONS if re.search(pattern, text)), ("", _RETRY)
    )
    # The service's own code and message are the part of its response that people can use.
    found = [re.search(rf"<{tag}>([^<]*)</{tag}>", text) for tag in ("Code", "Message")]
    quoted = ": ".join(" ".join(match[1].split()) for match in found if match and match[1])[:300]
    if reason and quoted:
        reason = f"{reason} ({quoted})"
    return StoreError(f"{what}: {reason or quoted or ' '.join(text.split())[:200]}", where=where, hint=hint)


def missing_bucket(text: str) -> bool:
    """Whether an error says that the bucket, and not an object, is missing."""
    return re.search(_NO_BUCKET, text) is not None


_IN_URL = re.compile(r"(?i)\b(sig|X-Amz-Signature|X-Amz-Security-Token|WebIdentityToken)=[^&\s\"')]+")


def scrubbed(text: str, secrets: Iterable[str]) -> str:
    """Return a text without the secrets, neither as they are nor percent-encoded."""
    for secret in sorted({form for one in secrets for form in (one, quote(one, safe=""))}, key=len)[::-1]:
        if len(secret) > 3:
            text = text.replace(secret, "***")
    return _IN_URL.sub(r"\1=***", text)
