"""The process that an AWS profile names in `credential_process`, asked for keys; nothing it says is shown.

What it prints is JSON, as AWS documents: Version 1, AccessKeyId, SecretAccessKey, and perhaps SessionToken
and Expiration.
"""

from __future__ import annotations

import shlex
from datetime import datetime, timezone

import msgspec
from msgspec import Struct

from deployer.errors import ConfigError
from deployer.processes import DEVNULL, EndlessError, ask_program

SECONDS = 60.0  # a process that needs longer waits for somebody


class _Answer(Struct, frozen=True, rename="pascal"):
    version: int
    access_key_id: str
    secret_access_key: str
    session_token: str | None = None
    expiration: datetime | None = None


def ask_process(command: str, profile: str, *, seconds: float = SECONDS) -> tuple[dict[str, str], bool]:
    """Run a profile's `credential_process`; return the keys by the names of AWS's variables.

    The second is whether they last, which those that expire do not. Raises ConfigError.
    """
    try:
        # What it writes to stderr may hold secrets, too.
        done = ask_program(shlex.split(command), seconds=seconds, stdin=DEVNULL, stderr=DEVNULL)
    except EndlessError as error:
        raise _useless(str(error), profile) from None
    except (OSError, ValueError):  # there is no such program, or a quote has no end
        raise _useless("cannot be started", profile) from None
    if done.code:
        raise _useless(f"ends with exit code {done.code}", profile)
    try:
        answer = msgspec.json.decode(done.output, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _useless("does not print keys as AWS reads them", profile) from None
    if answer.version != 1:
        raise _useless(f"prints keys in version {answer.version}, and AWS knows 1", profile)
    expires = answer.expiration
    if expires and expires.replace(tzinfo=expires.tzinfo or timezone.utc) <= datetime.now(timezone.utc):
        raise _useless("gives keys that have expired", profile)
    data = {"AWS_ACCESS_KEY_ID": answer.access_key_id, "AWS_SECRET_ACCESS_KEY": answer.secret_access_key}
    if answer.session_token:
        data["AWS_SESSION_TOKEN"] = answer.session_token
    return data, not (answer.session_token or expires)


def _useless(what: str, profile: str) -> ConfigError:
    return ConfigError(
        f"the credential_process of profile {profile} {what}",
        where="~/.aws/config",
        hint=f"sign in again; `aws sts get-caller-identity --profile {profile}` says more of it",
    )
