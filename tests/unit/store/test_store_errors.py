"""Errors of disks and object stores: each gets a reason and a hint, and shows no secret."""

from __future__ import annotations

import errno
import os

import pytest

from deployer.errors import DiskFullError, StoreError
from deployer.store.store_errors import cloud_error, disk_error, missing_bucket, scrubbed

WHERE = "s3://models/"
NO_RIGHT = "it failed: these credentials lack a permission"


@pytest.mark.parametrize(
    ("number", "kind", "what", "hint"),
    [
        (errno.ENOSPC, DiskFullError, "cannot write: the disk is full", "kdeploy prune"),
        (errno.EDQUOT, DiskFullError, "cannot write: the disk is full", "kdeploy prune"),
        (errno.EACCES, StoreError, "cannot write: Permission denied", "permission to read and write"),
        (errno.EROFS, StoreError, "cannot write: Read-only file system", "is read-only"),
        (errno.ENOTDIR, StoreError, "cannot write: a file is in the place of a folder", "remove the file"),
        (errno.EIO, StoreError, "cannot write: Input/output error", "Check `store.uri`"),
    ],
)
def test_an_error_of_a_disk_has_a_reason_and_a_hint(number: int, kind: type, what: str, hint: str) -> None:
    error = disk_error("cannot write", "/store", OSError(number, os.strerror(number)))
    assert type(error) is kind
    assert (error.what, error.where) == (what, "/store")
    assert hint in (error.hint or "")


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        (
            "<Code>RequestTimeTooSkewed</Code><Message>The\n difference</Message>",
            "it failed: this machine's clock is wrong (RequestTimeTooSkewed: The difference)",
            "by NTP",
        ),
        ("<Code>NoSuchBucket</Code>", "it failed: the bucket does not exist (NoSuchBucket)", "Create it"),
        (
            "the region 'a' is wrong; expecting 'b'",
            "it failed: the bucket is in another region",
            "store.region",
        ),
        (
            "<Code>ExpiredToken</Code>",
            "it failed: the credentials have expired (ExpiredToken)",
            "Sign in again",
        ),
        ("SignatureDoesNotMatch", "it failed: the credentials are invalid", "Correct them"),
        (
            "error sending request for url (http://169.254.169.254/latest)",
            "it failed: no credentials found",
            "in the environment",
        ),
        (
            "<Code>AccessDenied</Code><Message></Message>",
            f"{NO_RIGHT} (AccessDenied)",
            "list, read, write and delete",
        ),
        ("HTTP 403: no", NO_RIGHT, "list, read, write and delete"),
        ("invalid peer certificate: UnknownIssuer", "TLS certificate is not trusted", "store.ca-bundle"),
        ("BadScheme", "it failed: the server's address is not https://", "set `store.endpoint`"),
        ("<Code>SlowDown</Code>", "it failed: the server is too busy (SlowDown)", "are not sent again"),
        ("tcp connect error", "it failed: cannot connect to the server", "the proxy and `store.endpoint`"),
        ("something\n  else 4031", "it failed: something else 4031", "Retry"),
        ("<Code>Odd</Code>", "it failed: Odd", "Retry"),
        ("x" * 300, f"it failed: {'x' * 200}", "Retry"),
    ],
)
def test_an_error_of_a_service_has_a_reason_and_a_hint(text: str, what: str, hint: str) -> None:
    error = cloud_error("it failed", WHERE, text)
    assert error.what.endswith(what)
    assert len(error.what) < 300
    assert error.where == WHERE
    assert hint in (error.hint or "")


def test_a_missing_bucket_is_distinguished_from_a_missing_object() -> None:
    assert missing_bucket("The specified container does not exist")
    assert not missing_bucket("<Code>NoSuchKey</Code>")


def test_secrets_are_removed_in_every_form() -> None:
    text = "https://x/?sig=abc%2Fd&a=1 abc/d WebIdentityToken=eyJ abc%2Fd"
    assert scrubbed(text, ["abc/d"]) == "https://x/?sig=***&a=1 *** WebIdentityToken=*** ***"
    assert scrubbed("abcd abc", ["abc", "abcd"]) == "*** abc", "a value of three letters is not a secret"
    assert scrubbed("it is abcdef", ["abcd", "abcdef"]) == "it is ***", "the longer secret is removed first"
