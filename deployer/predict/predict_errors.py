"""Turns an HTTP error response into our error: who sent it, why, and what to do. Pure.

TorchServe says `{"code", "type", "message"}`; KServe's wrapper `{"error"}` with TorchServe's answer inside;
kdeploy's handler adapter `{"error", "row"}`, its one-node ingress `{"error", "hosts"}`; FastAPI `{"detail"}`;
Envoy a sentence or nothing at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from deployer.errors import PredictError

TEXT_MAX = 300  # characters of the response that an error quotes

_WRAPPED_STATUS = re.compile(r"'(\d{3}) [^']*' for url")
_WRAPPED_MESSAGE = re.compile(r"""["']message["']\s*:\s*["']([^"']*)["']""")
_TITLE = re.compile(r"<title>\s*(.*?)\s*</title>", re.IGNORECASE | re.DOTALL)


class Refusal(Struct, frozen=True, kw_only=True):
    """An error response as it was read: `status` is the innermost one that it reports."""

    status: int
    speaker: str
    kind: str = ""
    text: str = ""
    location: str = ""


class Asked(Struct, frozen=True):
    """The request: its model, Host header, size and size limit (bytes)."""

    model: str
    host: str | None
    size: int
    limit: int


def explain(status: int, headers: Mapping[str, str], body: bytes, asked: Asked) -> PredictError:
    """Return the error for a response with a status other than 2xx. Header names are in lower case."""
    refusal = read_refusal(status, headers, body)
    line = f"{refusal.status} {refusal.speaker} {refusal.kind}: {refusal.text} at {refusal.location}"
    what, hint = next((what, hint) for pattern, what, hint in _RULES if re.search(pattern, line))
    facts = {
        "model": asked.model,
        "host": f"the Host header {asked.host}" if asked.host else "a request without its own Host header",
        "size": asked.size,
        "limit": asked.limit,
        "exceeds": "the server's own limit" if asked.size <= asked.limit else "the limit",
        "location": refusal.location.split("?")[0] or "nowhere",
    }
    quote = f" {refusal.speaker} says: {refusal.text}" if refusal.text else f" (from {refusal.speaker})"
    return PredictError(f"HTTP {refusal.status}: {what.format(**facts)}.{quote}", hint=hint.format(**facts))


def read_refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refusal:
    """Find out who sent an error response and what it says."""
    text = body.decode(errors="replace").strip()
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    kind = ""
    if isinstance(document, dict):
        status, speaker, kind, text = _read_document(status, headers, document)
    else:
        title = _TITLE.search(text)
        speaker, text = _speaker(headers, text), title.group(1) if title else text
    location = headers.get("location", "")
    return Refusal(status=status, speaker=speaker, kind=kind, text=_short(text), location=location)


def _read_document(
    status: int, headers: Mapping[str, str], document: dict[str, Any]
) -> tuple[int, str, str, str]:
    """Return status, speaker, kind and text."""
    if {"code", "type", "message"} <= document.keys():
        return status, "TorchServe", str(document["type"]), str(document["message"])
    if "error" in document:
        text = str(document["error"])
        wrapped, message = _WRAPPED_STATUS.search(text), _WRAPPED_MESSAGE.search(text)
        if wrapped:
            text = message.group(1) if message else text
            return int(wrapped.group(1)), "TorchServe, through KServe's wrapper,", "", text
        if "row" in document:
            return status, "the handler", "row", f"row {document['row']}: {text}"
        ours = "hosts" in document or "retry-after" in headers  # the one-node target's ingress
        return status, "the ingress" if ours else "the model server", "error", text
    detail = document.get("detail", document.get("message", document))
    return status, "the server", "", detail if isinstance(detail, str) else json.dumps(detail)


def _speaker(headers: Mapping[str, str], text: str) -> str:
    server = headers.get("server", "").lower()
    if "envoy" in server or "x-envoy-upstream-service-time" in headers:
        return f"the ingress ({server})" if server else "the ingress"
    if any(name in server for name in ("aiohttp", "nginx", "kourier", "traefik")):
        return f"the ingress ({server})"
    if text.startswith(("upstream ", "no healthy upstream", "RBAC: ")):
        return "the ingress (envoy)"
    return f"the server ({server})" if server else "the server"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= TEXT_MAX else line[: TEXT_MAX - 1] + "…"


# What a line `STATUS SPEAKER KIND: TEXT at LOCATION` means, and what to do. The first pattern found counts.
_RULES = (
    (
        r"(?i)^3.* at \S*(dex|auth|login|oidc|signin)\S*$",
        "redirected to the login page {location}: an auth proxy such as Dex stands in front",
        "log in with the browser and pass its session: --cookie authservice_session=@FILE, or KDEPLOY_COOKIE",
    ),
    (
        "^3",
        "redirected to {location}, which kdeploy does not follow",
        "find out what stands in front; it names {location}",
    ),
    (
        "TorchServe InvalidKeyException:",
        "TorchServe requires a token for each request",
        "roll out with disable_token_authorization=true, kdeploy's default: kdeploy rollout",
    ),
    ("^401", "the request has no valid credentials", "pass a token: --token @FILE, or KDEPLOY_TOKEN"),
    (
        "^403 .*RBAC",
        "an Istio AuthorizationPolicy does not allow this request",
        "pass the token of an allowed account with --token @FILE, or have the policy allow it",
    ),
    (
        "^403",
        "these credentials do not allow access to this model",
        "pass those of an account with access: --token @FILE, or --cookie NAME=@FILE",
    ),
    (
        r"^404 (TorchServe Model\w*:|.*does not exist)",
        "there is no model {model} on this server",
        "list the models: kdeploy models list; the model's name must be the InferenceService's",
    ),
    (
        r"^404 ((TorchServe|the model server) \w*:|[^:]*: Not Found at )",
        "this server has no such path",
        "try the other protocol: with --kserve, or without",
    ),
    (
        "^404",
        "the ingress knows no service for {host}",
        "see the service's host in its URL: kdeploy status; if there is none: kdeploy rollout",
    ),
    (
        "^413",
        "the request has {size} bytes, more than {exceeds}",
        "raise serving.max-request-size (now {limit}), then kdeploy rollout; an ingress may limit it, too",
    ),
    (
        "^507",
        "the worker is out of memory (or its GPU failed)",
        "lower serving.batch-size or raise serving.memory, then kdeploy rollout; details: kdeploy logs",
    ),
    (
        "no worker to serve",
        "no worker takes the request: none has started, or the queue is full",
        "see the workers: kdeploy models describe; why one does not start: kdeploy logs",
    ),
    (
        "Worker died",
        "the worker died or did not answer within serving.response-timeout, and is restarted",
        (
            "see why: kdeploy logs; raise serving.response-timeout if the model is slow, "
            "serving.max-response-size if the log says 'Message size exceed limit'"
        ),
    ),
    (
        r"serving\.max-response-size is",
        "the answer is too large",
        "raise serving.max-response-size, then kdeploy rollout; or send fewer rows in one request",
    ),
    (
        "no time to try this row alone",
        "another row of the same batch failed",
        "send the request again; see which row failed: kdeploy logs",
    ),
    (
        "batch response mismatched",
        "the handler did not return one answer for each request of the batch",
        "kdeploy's own adapter takes care of that: kdeploy rollout; or set serving.batch-size = 1",
    ),
    ("Prediction failed", "the handler failed on this input", "see its traceback: kdeploy logs"),
    (
        "Invalid model predict output",
        "the handler returned what TorchServe cannot send",
        "return a list with one entry per row",
    ),
    (
        "is not ready",
        "the model is not loaded yet, or failed to load",
        "see which: kdeploy status, kdeploy logs",
    ),
    (
        "not JSON serializable",
        "KServe's wrapper could not read the body as JSON",
        "send V1: kdeploy predict --kserve",
    ),
    (
        "^400 [^:]* (row|error):",
        "the model does not accept this input",
        "compare the file with what the handler expects",
    ),
    (
        "^500 [^:]* error:|^... the handler row:",
        "the model failed on this input",
        "see the traceback: kdeploy logs",
    ),
    (
        "^50[23]",
        "the service is not ready, or scales up from zero",
        "see what it waits for: kdeploy status, kdeploy logs; then try again",
    ),
    (
        "^(408|504)",
        "the model did not answer in the time that the server allows",
        "see what the workers do: kdeploy logs; raise serving.response-timeout",
    ),
    ("^429", "too many requests at once", "try again later, or raise scaling.max-replicas"),
    ("^[5-9]", "the server failed", "see why: kdeploy logs"),
    ("", "the request was refused", "see the service and its URL: kdeploy status"),
)
