"""Translates the API server's refusals and failed connections into kdeploy's errors, by one table.

Errors quote the API server's answer. They never quote the request, which can hold secrets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import urllib3
from msgspec import Struct

from deployer.errors import (
    ConflictError,
    KdeployError,
    NotFoundError,
    RefusedError,
    RolloutFailedError,
    TargetError,
)

TEXT_MAX = 600  # characters of the answer that an error quotes

_RETRY = "Check the network, the VPN and the context, then retry."
_FIX = "Fix the fields named in the message."
_AGAIN = "Run the command again."
_MARKUP = re.compile(r"<style.*?</style>|<script.*?</script>|<[^>]*>", re.DOTALL)
_FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"'
    r' in API group "(?P<group>[^"]*)"'
)
_MANAGER = re.compile(r'conflict with "(?P<manager>[^"]+)"')
_WEBHOOK = re.compile(r'admission webhook "(?P<name>[^"]+)" denied the request(?: without explanation)?:? ?')
_CALLING = re.compile(r'failed calling webhook "(?P<name>[^"]+)"')


class GoneError(TargetError):
    """The API server no longer has the version from which a watch or a list was to continue."""


class PassingError(TargetError):
    """The network or the API server failed, perhaps temporarily, and the request might have taken effect.

    A retry can succeed, after the seconds that the answer names in `after`.
    """

    after: float | None = None


class UntouchedError(PassingError):
    """The request failed before it could take effect."""


class ExistsError(ConflictError):
    """An object of this name exists."""


class OutdatedError(ConflictError):
    """Another client changed the object at the same time."""


class ForbiddenError(RefusedError):
    """The user lacks a permission."""


class LoginError(TargetError):
    """A proxy in front of the API server answered with its login page."""

    retryable = False


class NoLogError(RefusedError):
    """A container has no log: it did not start, its pod is gone, or its node does not answer."""


class UnknownKindError(RefusedError):
    """The cluster does not know this kind of object."""


class _Answer(Struct, frozen=True):
    status: int
    message: str
    reason: str
    causes: list[dict[str, Any]]
    is_page: bool


_Error = tuple[type[KdeployError], str, str]  # the class, what is wrong, and the hint


def read_refusal(status: int, body: bytes, where: str, after: float | None = None) -> KdeployError:
    """Return the error for an unsuccessful answer, whose body is a Status object or a web page.

    `where` names the request and the server; `after` is the Retry-After header in seconds.
    """
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {}
    text = document.get("message") or _MARKUP.sub(" ", body.decode(errors="replace"))
    answer = _Answer(
        status=status,
        message=" ".join(str(text).split())[:TEXT_MAX],
        reason=str(document.get("reason") or ""),
        causes=(document.get("details") or {}).get("causes") or [],
        is_page=body.lstrip()[:1] == b"<",
    )
    kind, what, hint = next((read for applies, read in _TABLE if applies(answer)), _unexpected)(answer)
    error = kind(what, where=where, hint=hint)
    if isinstance(error, PassingError):
        error.after = after
    return error


def unreachable(error: Exception, where: str) -> KdeployError:
    """Return the error for a connection that failed or an answer that broke off."""
    if "certificate" in str(getattr(error, "reason", None) or error).lower():
        return RefusedError(
            "the API server's certificate is not signed by the kubeconfig's authority",
            where=where,
            hint="Check the context: its `certificate-authority` must be the one of this cluster.",
        )
    if isinstance(error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError):
        return UntouchedError("cannot reach the API server", where=where, hint=_RETRY)
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return PassingError("the API server does not answer", where=where, hint=_RETRY)
    return PassingError("the connection to the API server broke", where=where, hint=_RETRY)


def _not_an_api(answer: _Answer) -> _Error:
    if answer.is_page or answer.status >= 300:
        hint = "Log in to the cluster or its VPN, and check its address in the kubeconfig."
        return LoginError, f"a web page answered instead of the API server: {answer.message}", hint
    return PassingError, "the API server's answer is not a JSON object", _RETRY


def _forbidden(answer: _Answer) -> _Error:
    match = _FORBIDDEN.search(answer.message)
    if match is None:
        return _denied(answer)
    if match["user"] == "system:anonymous":
        return RefusedError, "the kubeconfig has no credentials", "Log in to the cluster."
    resource = ".".join(word for word in (match["resource"], match["group"]) if word)
    what = f"user {match['user']} cannot {match['verb']} {resource}"
    return ForbiddenError, what, "`kdeploy render --rbac` prints a Role that grants this."


def _denied(answer: _Answer) -> _Error:
    """Read the refusal of a webhook, a quota or a policy, which a retry does not change."""
    match = _WEBHOOK.search(answer.message)
    text = answer.message[match.end() :] if match else answer.message
    full = "exceeded quota" in text
    hint = "Raise the quota, or delete what uses it: `kubectl describe quota`." if full else _FIX
    who = f"webhook {match['name']}" if match else "the API server"
    return RolloutFailedError, f"{who} denied the request: {text}", hint


def _webhook_down(answer: _Answer) -> _Error:
    match = _CALLING.search(answer.message)
    what = f"webhook {match['name'] if match else ''} does not answer: {answer.message}"
    return UntouchedError, what, "Check with `kdeploy doctor` that its controller runs, then retry."


def _conflict(answer: _Answer) -> _Error:
    held = []
    for cause in answer.causes:
        if cause.get("reason") == "FieldManagerConflict":
            match = _MANAGER.search(str(cause.get("message")))
            manager = match["manager"] if match else "another manager"
            held.append(f"{cause.get('field', '').lstrip('.')} is managed by {manager}")
    if held:
        hint = "Take over the fields with --force-conflicts, or set the same values in kdeploy.toml."
        return ConflictError, f"field conflict: {'; '.join(held)}", hint
    kind = ExistsError if answer.reason == "AlreadyExists" else OutdatedError
    return kind, f"another client changed the object at the same time: {answer.message}", _AGAIN


def _missing(answer: _Answer) -> _Error:
    if "could not find the requested resource" in answer.message or "page not found" in answer.message:
        hint = "Run `kdeploy doctor` to see what the cluster lacks."
        return UnknownKindError, "the cluster does not know this kind of object", hint
    return NotFoundError, answer.message, "Run `kdeploy list` to see the services."


def _invalid(answer: _Answer) -> _Error:
    causes = [f"{cause.get('field')}: {cause.get('message')}" for cause in answer.causes]
    what = f"the API server rejected the document as invalid: {'; '.join(causes) or answer.message}"
    return RolloutFailedError, what[:TEXT_MAX], _FIX


def _unreachable_node(answer: _Answer) -> _Error:
    hint = "Check that the node is Ready: `kubectl get nodes`. Then retry."
    return TargetError, f"cannot reach the pod's node: {answer.message}", hint


def _unauthorized(_: _Answer) -> _Error:
    return RefusedError, "the API server rejected the credentials", "Log in to the cluster again."


def _busy(answer: _Answer) -> _Error:
    kind = UntouchedError if answer.status == 429 else PassingError
    what = f"the API server is overloaded or failing (HTTP {answer.status}): {answer.message}"
    return kind, what, "Run the command again later."


def _unexpected(answer: _Answer) -> _Error:
    what = f"the API server answered HTTP {answer.status}: {answer.message}"
    return TargetError, what, "Check that the context names an API server."


_TABLE: tuple[tuple[Callable[[_Answer], object], Callable[[_Answer], _Error]], ...] = (
    (lambda a: a.status < 400, _not_an_api),
    (lambda a: a.status == 401, _unauthorized),
    (lambda a: _WEBHOOK.search(a.message), _denied),
    (lambda a: _CALLING.search(a.message), _webhook_down),
    (lambda a: a.status == 403, _forbidden),
    (lambda a: a.status == 404, _missing),
    (lambda a: a.status == 409, _conflict),
    (lambda a: a.status == 410, lambda a: (GoneError, a.message, _AGAIN)),
    (lambda a: a.status in (400, 422), _invalid),
    (lambda a: "error dialing backend" in a.message, _unreachable_node),
    (lambda a: a.status == 429 or a.status >= 500, _busy),
)
