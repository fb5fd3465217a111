"""Turns an HTTP error response into our error: who sent it, why, and what to do. Pure.

TorchServe sends `{"code", "type", "message"}`; KServe's wrapper `{"error"}` with TorchServe's response in it;
kdeploy's adapter `{"error", "row"}`, its ingress `{"error", "hosts"}`; FastAPI `{"detail"}`; Envoy a sentence
or nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from deployer.errors import InputRefusedError, NotReachedError, PredictError
from deployer.predict.content import JSON

TEXT_MAX = 300  # characters of the response that an error quotes

_WRAPPED_STATUS = re.compile(r"'(\d{3}) [^']*' for url")
_WRAPPED_MESSAGE = re.compile(r"""["']message["']\s*:\s*["']([^"']*)["']""")
_TITLE = re.compile(r"<title>\s*(.*?)\s*</title>", re.IGNORECASE | re.DOTALL)


class Refusal(Struct, frozen=True, kw_only=True):
    """A parsed error response: `status` is the innermost one that it reports."""

    status: int
    sender: str
    kind: str = ""
    text: str = ""
    location: str = ""


class SentRequest(Struct, frozen=True):
    """The request: its model, Host header, size and size limit (bytes), protocol and content type."""

    model: str
    host: str | None
    size: int
    limit: int
    protocol: str = "plain"
    content_type: str = ""


def explain(status: int, headers: Mapping[str, str], body: bytes, sent: SentRequest) -> PredictError:
    """Return the error for a response with a status other than 2xx. Header names are in lower case."""
    refusal = read_refusal(status, headers, body)
    sent_as = "plain-json" if (sent.protocol, sent.content_type) == ("plain", JSON) else sent.protocol
    line = (
        f"{refusal.status} {refusal.sender} {refusal.kind}: {refusal.text} to {sent_as} at {refusal.location}"
    )
    kind, what, hint = next(rule[1:] for rule in _RULES if re.search(rule[0], line))
    facts = {
        "model": sent.model,
        "host": f"the Host header {sent.host}" if sent.host else "a request without its own Host header",
        "size": sent.size,
        "limit": sent.limit,
        "exceeds": "the server's own limit" if sent.size <= sent.limit else "the limit",
        "location": refusal.location.split("?")[0] or "no address",
    }
    source = f"{refusal.sender}: {refusal.text}" if refusal.text else f"from {refusal.sender}"
    return kind(f"HTTP {refusal.status}: {what.format(**facts)} ({source})", hint=hint.format(**facts))


def read_refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refusal:
    """Find out who sent an error response, and its text."""
    text = body.decode(errors="replace").strip()
    kind, sender = "", _sender(headers, text)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        status, sender, kind, text = _read_document(status, headers, document)
    elif title := _TITLE.search(text):
        text = title[1]
    text = " ".join(text.split())
    if len(text) > TEXT_MAX:
        text = text[: TEXT_MAX - 1] + "…"
    location = headers.get("location", "")
    return Refusal(status=status, sender=sender, kind=kind, text=text, location=location)


def _read_document(
    status: int, headers: Mapping[str, str], document: dict[str, Any]
) -> tuple[int, str, str, str]:
    """Return status, sender, kind and text."""
    if {"code", "type", "message"} <= document.keys():
        return status, "TorchServe", str(document["type"]), str(document["message"])
    if "error" in document:
        text = str(document["error"])
        wrapped, message = _WRAPPED_STATUS.search(text), _WRAPPED_MESSAGE.search(text)
        if wrapped:
            return int(wrapped[1]), "TorchServe through KServe", "", message[1] if message else text
        if "row" in document:
            return status, "handler", "row", f"row {document['row']}: {text}"
        ours = "hosts" in document or "retry-after" in headers  # the local target's ingress
        return status, "ingress" if ours else "model server", "error", text
    for key in ("response", "result", "prediction"):
        if isinstance(document.get(key), str):
            return status, "model", "", document[key]
    detail = document.get("detail", document.get("message", document))
    return status, "server", "", detail if isinstance(detail, str) else json.dumps(detail)


def _sender(headers: Mapping[str, str], text: str) -> str:
    server = headers.get("server", "").lower()
    if text.startswith(("upstream ", "no healthy upstream", "RBAC: ")):
        return f"ingress {server or 'envoy'}"
    known = any(name in server for name in ("envoy", "aiohttp", "nginx", "kourier", "traefik"))
    kind = "ingress" if known or "x-envoy-upstream-service-time" in headers else "server"
    return f"{kind} {server}".strip()


_READS_JSON = (
    r"(bytearray|bytes?|string) indices must be"
    r"|'(bytearray|bytes|str)' object has no attribute '(get|keys|items)'"
    r"|a bytes-like object is required, not 'str'|JSONDecodeError|UnicodeDecodeError"
)
# Patterns of a line `STATUS SENDER KIND: TEXT to PROTOCOL at LOCATION`, the kind of error, the reason and the
# hint. The first match counts.
_RULES: tuple[tuple[str, type[PredictError], str, str], ...] = (
    (
        "^4.. (handler row|model ):",
        InputRefusedError,
        "the model refused this input",
        "Compare it with the input that the handler expects.",
    ),
    (
        r"(?i)^3.* at \S*(dex|auth|login|oidc|signin)\S*$",
        NotReachedError,
        "redirected to the login page {location} of an auth proxy",
        "Log in with a browser. Pass its session: `--cookie authservice_session=@FILE`, or KDEPLOY_COOKIE.",
    ),
    (
        "^3",
        NotReachedError,
        "redirected to {location}, which kdeploy does not follow",
        "Run `kdeploy status` and compare the URL, or find out which proxy redirects.",
    ),
    (
        "TorchServe InvalidKeyException:",
        NotReachedError,
        "TorchServe requires a token for each request",
        "Set `disable_token_authorization` to true, kdeploy's default, then run `kdeploy rollout`.",
    ),
    (
        "^401",
        NotReachedError,
        "the request has no valid credentials",
        "Pass a token: `--token @FILE`, or KDEPLOY_TOKEN.",
    ),
    (
        "^403 .*RBAC",
        NotReachedError,
        "an Istio AuthorizationPolicy denies this request",
        "Pass the token of an allowed account with `--token @FILE`, or change the policy.",
    ),
    (
        "^403",
        NotReachedError,
        "these credentials do not allow access to this model",
        "Pass those of an account with access: `--token @FILE`, or `--cookie NAME=@FILE`.",
    ),
    (
        r"^404 (TorchServe Model\w*:|.*does not exist)",
        NotReachedError,
        "model {model} not found on this server",
        "Run `kdeploy models list`. The model must have the name of the InferenceService.",
    ),
    (
        r"^404 ((TorchServe|model server) \w*:|[^:]*: Not Found to )",
        NotReachedError,
        "the server does not have this path",
        "Use the other protocol: add `--kserve`, or remove it.",
    ),
    (
        "^404",
        NotReachedError,
        "the ingress has no service for {host}",
        "Run `kdeploy status` and compare the host of its URL. To create the service, run `kdeploy rollout`.",
    ),
    (
        "^413",
        InputRefusedError,
        "the request has {size} bytes, more than {exceeds}",
        "Raise `serving.max-request-size` (now {limit}), then run `kdeploy rollout`. Ingresses have limits.",
    ),
    (
        "^507",
        PredictError,
        "the worker has no memory left, or its GPU failed",
        "Run `kdeploy logs`, then lower `serving.batch-size` or raise `serving.memory` and roll out again.",
    ),
    (
        "no worker to serve",
        NotReachedError,
        "no worker is available: none has started, or the queue is full",
        "Run `kdeploy models describe` to see the workers, `kdeploy logs` to see why one does not start.",
    ),
    (
        "Worker died",
        PredictError,
        "the worker died or exceeded serving.response-timeout, and restarts",
        (
            "Run `kdeploy logs`. If the model is slow, raise `serving.response-timeout`; if the log has "
            "'Message size exceed limit', raise `serving.max-response-size`."
        ),
    ),
    (
        r"serving\.max-response-size is",
        PredictError,
        "the response is too large",
        "Raise `serving.max-response-size`, then run `kdeploy rollout`; or send fewer rows per request.",
    ),
    (
        "no time to try this row",
        PredictError,
        "another row of the same batch failed",
        "Send the request again. To see which row failed, run `kdeploy logs`.",
    ),
    (
        "batch response mismatched|Invalid model predict output",
        PredictError,
        "the handler did not return a list with one response per request of the batch",
        "Run `kdeploy rollout` to add kdeploy's adapter, which fixes this, or set `serving.batch-size = 1`.",
    ),
    (
        "is not ready",
        NotReachedError,
        "the model is not loaded yet, or failed to load",
        "Run `kdeploy status`, then `kdeploy logs`.",
    ),
    (
        "not JSON serializable: bytes",
        PredictError,
        "KServe's wrapper could not read the body as JSON",
        "Send V1: `kdeploy predict --kserve`.",
    ),
    (
        f"row: .*({_READS_JSON}).* to plain at",
        PredictError,
        "the handler failed on this input, which it reads as a JSON object",
        'Add `--protocol json`, which sends {{"data": base64}}.',
    ),
    (
        "row: .*KeyError: '(data|body|image|text|instances|inputs)' to plain(-json)? at",
        PredictError,
        "the handler failed on this input, which has no such key",
        'Add `--protocol v1`, which sends rows such as {{"data": base64}}, or run `kdeploy logs`.',
    ),
    (
        f"row: .*({_READS_JSON}).* to v2 at",
        PredictError,
        "the handler failed on this input, which it reads as a JSON object",
        "Add `--protocol v1`: V2 has no objects.",
    ),
    (
        "^400 [^:]* error:",
        InputRefusedError,
        "the server refused the request, before the model",
        "Compare it with the format of its protocol, V1 or V2, or choose another with `--protocol`.",
    ),
    (
        "Prediction failed|^500 [^:]* error:|^... handler row:",
        PredictError,
        "the handler failed on this input",
        "Run `kdeploy logs` to see its traceback.",
    ),
    (
        "^50[23]",
        NotReachedError,
        "the service is not ready, or scales up from zero",
        "Run `kdeploy status` and `kdeploy logs`, then retry.",
    ),
    (
        "^(408|504)",
        PredictError,
        "the model exceeded the server's time limit",
        (
            "Run `kdeploy logs`. If the model is slow, raise `serving.response-timeout` and roll out: this "
            "also raises the ingress's limit. Knative has a maximum, `max-revision-timeout-seconds`."
        ),
    ),
    (
        "^429",
        NotReachedError,
        "too many concurrent requests",
        "Retry later, or raise `scaling.max-replicas`.",
    ),
    ("^[5-9]", PredictError, "the server failed", "Run `kdeploy logs`."),
    (
        "",
        InputRefusedError,
        "the server refused the request",
        "Run `kdeploy status` to see the service and its URL.",
    ),
)
