"""What a refusal of the API server means: one table from its answers to our errors.

What the API server says is quoted. What was sent to it never is, since that may hold secrets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import urllib3

from deployer.errors import (
    ConflictError,
    KdeployError,
    NotFoundError,
    RefusedError,
    RolloutFailedError,
    TargetError,
)

_RETRY = "check the network, the VPN and the context, then retry"
_FIX = "fix the fields named in the message"
TEXT_MAX = 600  # characters of a foreign text that an error quotes

_FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"'
    r' in API group "(?P<group>[^"]*)"'
)
_MANAGER = re.compile(r'conflict with "(?P<manager>[^"]+)"')
_WEBHOOK = re.compile(r'admission webhook "(?P<name>[^"]+)" denied the request(?: without explanation)?:? ?')
_CALLING = re.compile(r'failed calling webhook "(?P<name>[^"]+)"')


class GoneError(TargetError):
    """The API server has forgotten the version that a watch should resume from: list again."""


class PassingError(TargetError):
    """The network or the API server fails, perhaps only for a moment: try again.

    `done` says that the request may have taken effect, and `after` how many seconds the answer asks to wait.
    """

    done = True
    after: float | None = None


class UntouchedError(PassingError):
    """The request failed before it can have taken effect."""

    done = False


class OutdatedError(ConflictError):
    """Another client changed the object at the same time."""


class ForbiddenError(RefusedError):
    """The user lacks a permission."""


class LoginError(TargetError):
    """A proxy before the API server answers, and wants people to log in."""

    retryable = False


class NoLogError(RefusedError):
    """A container has no log: it did not start, its Pod is gone, or its node does not answer."""


class UnknownKindError(RefusedError):
    """The cluster has no such kind of object."""


class Answer:
    """An answer that is not a success: its HTTP status and the Status object in its body.

    `asked` says in words what was requested, a verb and an object; `host` is the API server; `after` is the
    Retry-After in seconds.
    """

    def __init__(
        self, status: int, body: bytes, *, asked: str, host: str, after: float | None = None
    ) -> None:
        self.status = status
        self.where = f"{asked} on {host}"
        self.after = after
        try:
            document = json.loads(body)
        except ValueError:
            document = {}
        document = document if isinstance(document, dict) else {}
        self.reason = str(document.get("reason") or "")
        said = document.get("message") or _text(body.decode(errors="replace"))
        self.message = " ".join(str(said).split())[:TEXT_MAX]
        self.is_page = body.lstrip()[:1] == b"<"
        details = document.get("details") or {}
        self.causes: list[dict[str, Any]] = details.get("causes") or []


def read(answer: Answer) -> KdeployError:
    """Return the error that an answer stands for."""
    for applies, error in _TABLE:
        if applies(answer):
            return error(answer)
    return _unexpected(answer)


def doubted(failure: KdeployError) -> KdeployError:
    """Add to the error of a write that it may have taken effect."""
    return type(failure)(
        f"{failure.what}; the change may have been made nevertheless",
        where=failure.where,
        hint=failure.hint,
    )


def unreachable(error: urllib3.exceptions.HTTPError, where: str) -> KdeployError:
    """Return the error that a connection which failed stands for; `where` says whose."""
    text = str(getattr(error, "reason", None) or error)
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate" in text.lower():
        return RefusedError(
            "the API server's certificate is not signed by the kubeconfig's authority",
            where=where,
            hint="check the context; `certificate-authority` in the kubeconfig must be the cluster's",
        )
    hint = _RETRY
    if isinstance(error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError):
        return UntouchedError("the API server cannot be reached", where=where, hint=hint)
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return PassingError("the API server does not answer", where=where, hint=hint)
    return PassingError("the connection to the API server broke", where=where, hint=hint)


def broken(error: Exception, where: str) -> KdeployError:
    """Return the error that an answer which broke off stands for."""
    if isinstance(error, urllib3.exceptions.HTTPError):
        return unreachable(error, where)
    return unreachable(urllib3.exceptions.ProtocolError(str(error)), where)


def _strange(answer: Answer) -> KdeployError:
    """Return the error of an answer that a proxy gives in place of the API server."""
    if answer.is_page or answer.status >= 300:
        return LoginError(
            f"a web page answers instead of the API server: {answer.message}",
            where=answer.where,
            hint="log in to the cluster or its VPN, and check its address in the kubeconfig",
        )
    return PassingError("the API server's answer is not a JSON object", where=answer.where, hint=_RETRY)


def _unauthorized(answer: Answer) -> KdeployError:
    return RefusedError(
        "the cluster does not accept the credentials: a token may have expired",
        where=answer.where,
        hint="log in to the cluster again",
    )


def _forbidden(answer: Answer) -> KdeployError:
    match = _FORBIDDEN.search(answer.message)
    if match is None:
        return _denied(answer)
    resource = ".".join(word for word in (match["resource"], match["group"]) if word)
    if match["user"] == "system:anonymous":
        return RefusedError(
            "the cluster was given no credentials",
            where=answer.where,
            hint="log in: the kubeconfig has no token",
        )
    return ForbiddenError(
        f"user {match['user']} may not {match['verb']} {resource}",
        where=answer.where,
        hint="`kdeploy render --rbac` prints the Role that grants it",
    )


def _denied(answer: Answer) -> KdeployError:
    """Admission refuses: a webhook, a quota, a policy; trying again would not help."""
    match = _WEBHOOK.search(answer.message)
    said = answer.message[match.end() :] if match else answer.message
    speaker = f"webhook {match['name']}" if match else "the API server"
    hint = _FIX
    if "exceeded quota" in said:
        hint = "raise the quota, or delete what uses it: `kubectl describe quota`"
    return RolloutFailedError(f"{speaker} refuses it: {said}", where=answer.where, hint=hint)


def _webhook_down(answer: Answer) -> KdeployError:
    match = _CALLING.search(answer.message)
    name = match["name"] if match else ""
    return UntouchedError(
        f"webhook {name} does not answer: {answer.message}",
        where=answer.where,
        hint="check that the pods of its controller run: `kdeploy doctor`; then retry",
    )


def _conflict(answer: Answer) -> KdeployError:
    held = [
        f"{cause.get('field', '').lstrip('.')} is managed by {_manager(cause)}"
        for cause in answer.causes
        if cause.get("reason") == "FieldManagerConflict"
    ]
    if held:
        return ConflictError(
            f"field conflict: {'; '.join(held)}",
            where=answer.where,
            hint="--force-conflicts takes the fields over; or set the same values in kdeploy.toml",
        )
    kind = ConflictError if answer.reason == "AlreadyExists" else OutdatedError
    what = f"another client changed it at the same time: {answer.message}"
    return kind(what, where=answer.where, hint="run it again")


def _manager(cause: dict[str, Any]) -> str:
    match = _MANAGER.search(str(cause.get("message")))
    return match["manager"] if match else "another manager"


def _missing(answer: Answer) -> KdeployError:
    if "could not find the requested resource" in answer.message or "page not found" in answer.message:
        return UnknownKindError(
            "the cluster does not know this kind of object",
            where=answer.where,
            hint="`kdeploy doctor` shows what the cluster lacks",
        )
    return NotFoundError(answer.message, where=answer.where, hint="`kdeploy list` shows what exists")


def _invalid(answer: Answer) -> KdeployError:
    causes = [f"{cause.get('field')}: {cause.get('message')}" for cause in answer.causes]
    said = "; ".join(causes) or answer.message
    what = f"the API server rejects it as invalid: {said}"[:TEXT_MAX]
    return RolloutFailedError(what, where=answer.where, hint=_FIX)


def _unreachable_node(answer: Answer) -> KdeployError:
    return TargetError(
        f"the pod's node cannot be reached: {answer.message}",
        where=answer.where,
        hint="check that the node is Ready: `kubectl get nodes`; then retry",
    )


def _gone(answer: Answer) -> KdeployError:
    return GoneError(answer.message, where=answer.where, hint="run it again")


def _busy(answer: Answer) -> KdeployError:
    kind = UntouchedError if answer.status == 429 else PassingError
    what = f"the API server is busy or in trouble (HTTP {answer.status}): {answer.message}"
    error = kind(what, where=answer.where, hint="run it again later")
    error.after = answer.after
    return error


def _unexpected(answer: Answer) -> KdeployError:
    what = f"the API server answers HTTP {answer.status}: {answer.message}"
    return TargetError(what, where=answer.where, hint="check that the context names an API server")


def _text(body: str) -> str:
    """Return the words of a text that may be a page for browsers."""
    return re.sub(r"<style.*?</style>|<script.*?</script>|<[^>]*>", " ", body, flags=re.DOTALL)


_Error = Callable[[Answer], KdeployError]
_TABLE: tuple[tuple[Callable[[Answer], object], _Error], ...] = (
    (lambda a: a.status < 400, _strange),
    (lambda a: a.status == 401, _unauthorized),
    (lambda a: _WEBHOOK.search(a.message), _denied),
    (lambda a: _CALLING.search(a.message), _webhook_down),
    (lambda a: a.status == 403, _forbidden),
    (lambda a: a.status == 404, _missing),
    (lambda a: a.status == 409, _conflict),
    (lambda a: a.status == 410, _gone),
    (lambda a: a.status in (400, 422), _invalid),
    (lambda a: "error dialing backend" in a.message, _unreachable_node),
    (lambda a: a.status == 429 or a.status >= 500, _busy),
)
