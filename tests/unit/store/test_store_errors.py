"""What disks and object stores say, turned into sentences that name the next step and no secret."""

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
        (errno.ENOSPC, DiskFullError, "it cannot be written: the disk is full", "kdeploy prune"),
        (errno.EDQUOT, DiskFullError, "it cannot be written: the disk is full", "kdeploy prune"),
        (errno.EACCES, StoreError, "it cannot be written: Permission denied", "give yourself the right"),
        (errno.EROFS, StoreError, "it cannot be written: Read-only file system", "is read-only"),
        (errno.EIO, StoreError, "it cannot be written: Input/output error", "check store.uri"),
    ],
)
def test_what_a_disk_refuses(number: int, kind: type, what: str, hint: str) -> None:
    error = disk_error("it cannot be written", "/store", OSError(number, os.strerror(number)))
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
        ("<Code>NoSuchBucket</Code>", "it failed: there is no such bucket (NoSuchBucket)", "create it"),
        (
            "the region 'a' is wrong; expecting 'b'",
            "it failed: the bucket is in another region",
            "store.region",
        ),
        (
            "<Code>ExpiredToken</Code>",
            "it failed: the credentials have expired (ExpiredToken)",
            "sign in again",
        ),
        ("SignatureDoesNotMatch", "it failed: the credentials are invalid", "check where they come from"),
        (
            "error sending request for url (http://169.254.169.254/latest)",
            "it failed: there are no credentials",
            "in the environment",
        ),
        (
            "<Code>AccessDenied</Code><Message></Message>",
            f"{NO_RIGHT} (AccessDenied)",
            "list, read, write and delete",
        ),
        ("HTTP 403: no", NO_RIGHT, "list, read, write and delete"),
        ("invalid peer certificate: UnknownIssuer", "its TLS certificate is not trusted", "store.ca-bundle"),
        ("BadScheme", "it failed: it would be read without TLS", "write http:// in store.endpoint"),
        ("<Code>SlowDown</Code>", "it failed: it is too busy (SlowDown)", "are not sent again"),
        ("tcp connect error", "it failed: it cannot be reached", "the proxy and store.endpoint"),
        ("something\n  else 4031", "it failed: something else 4031", "retry"),
        ("<Code>Odd</Code>", "it failed (Odd)", "retry"),
        ("x" * 300, f"it failed: {'x' * 200}", "retry"),
    ],
)
def test_what_services_say(text: str, what: str, hint: str) -> None:
    error = cloud_error("it failed", WHERE, text)
    assert error.what.endswith(what)
    assert len(error.what) < 300
    assert error.where == WHERE
    assert hint in (error.hint or "")


def test_a_missing_bucket_is_told_from_a_missing_object() -> None:
    assert missing_bucket("The specified container does not exist")
    assert not missing_bucket("<Code>NoSuchKey</Code>")


def test_secrets_are_scrubbed_in_every_form() -> None:
    text = "https://x/?sig=abc%2Fd&a=1 abc/d WebIdentityToken=eyJ abc%2Fd"
    assert scrubbed(text, ["abc/d"]) == "https://x/?sig=***&a=1 *** WebIdentityToken=*** ***"
    assert scrubbed("abcd abc", ["abc", "abcd"]) == "*** abc", "three letters are no secret, but a word"
    assert scrubbed("it is abcdef", ["abcd", "abcdef"]) == "it is ***", "and no end of the longer one is left"
