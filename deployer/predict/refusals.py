"""What an HTTP answer that is no success means: who says it, why, and what to do. Pure.

TorchServe says `{"code", "type", "message"}`; KServe's wrapper `{"error"}` with TorchServe's answer inside;
kdeploy's handler adapter `{"error", "row"}`, its one-node ingress `{"error", "hosts"}`; FastAPI `{"detail"}`;
Envoy a sentence or nothing at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from deployer.errors import PredictError

TEXT_MAX = 300  # characters of a foreign text that an error quotes

_WRAPPED_STATUS = re.compile(r"'(\d{3}) [^']*' for url")
_WRAPPED_MESSAGE = re.compile(r"""["']message["']\s*:\s*["']([^"']*)["']""")
_TITLE = re.compile(r"<title>\s*(.*?)\s*</title>", re.IGNORECASE | re.DOTALL)


class Refusal(Struct, frozen=True, kw_only=True):
    """An answer that is no success, as it was read: `status` is the innermost one that it tells of."""

    status: int
    speaker: str
    kind: str = ""
    text: str = ""
    location: str = ""


class Sentence(Struct, frozen=True):
    """What a refusal means and what to do."""

    what: str
    hint: str


class Asked(Struct, frozen=True):
    """What the request was: which model, by which Host header, how large, under which limit (bytes)."""

    model: str
    host: str | None
    size: int
    limit: int


def explain(status: int, headers: Mapping[str, str], body: bytes, asked: Asked) -> PredictError:
    """Return the error that an answer with a status other than 2xx stands for. Header names in lower case."""
    refusal = read_refusal(status, headers, body)
    sentence = next(found for rule in _RULES if (found := rule(refusal, asked)))
    said = f" {refusal.speaker} says: {refusal.text}" if refusal.text else f" (from {refusal.speaker})"
    return PredictError(f"HTTP {refusal.status}: {sentence.what}.{said}", hint=sentence.hint)


def read_refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refusal:
    """Find out who refuses and what they say."""
    text = body.decode(errors="replace").strip()
    location = headers.get("location", "")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        return _read_document(status, headers, document)
    title = _TITLE.search(text)
    return Refusal(
        status=status,
        speaker=_speaker(headers, text),
        text=_short(title.group(1) if title else text),
        location=location,
    )


def _read_document(status: int, headers: Mapping[str, str], document: dict[str, Any]) -> Refusal:
    location = headers.get("location", "")
    if {"code", "type", "message"} <= document.keys():
        kind, text = str(document["type"]), _short(str(document["message"]))
        return Refusal(status=status, speaker="TorchServe", kind=kind, text=text, location=location)
    if "error" in document:
        text = str(document["error"])
        wrapped, message = _WRAPPED_STATUS.search(text), _WRAPPED_MESSAGE.search(text)
        if wrapped:
            told = message.group(1) if message else text
            return Refusal(
                status=int(wrapped.group(1)),
                speaker="TorchServe, through KServe's wrapper,",
                text=_short(told),
                location=location,
            )
        if "row" in document:
            return Refusal(
                status=status,
                speaker="the handler",
                kind="row",
                text=_short(f"row {document['row']}: {text}"),
                location=location,
            )
        ours = "hosts" in document or "retry-after" in headers  # the one-node target's ingress
        speaker = "the ingress" if ours else "the model server"
        return Refusal(status=status, speaker=speaker, kind="error", text=_short(text), location=location)
    told = document.get("detail", document.get("message", document))
    text = _short(told if isinstance(told, str) else json.dumps(told))
    return Refusal(status=status, speaker="the server", text=text, location=location)


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


# The rules, asked in order; the first that knows the refusal speaks.


def _login(refusal: Refusal, _asked: Asked) -> Sentence | None:
    if not 300 <= refusal.status < 400:
        return None
    to = refusal.location.split("?")[0] or "nowhere"
    if re.search(r"dex|auth|login|oauth|oidc|signin", refusal.location, re.IGNORECASE):
        return Sentence(
            f"redirected to the login page {to}: an auth proxy such as Dex stands in front",
            "log in with the browser and give its session:"
            " --cookie authservice_session=@FILE, or KDEPLOY_COOKIE",
        )
    return Sentence(
        f"redirected to {to}, which kdeploy does not follow",
        f"find out what stands in front; it names {to}",
    )


def _token(refusal: Refusal, _asked: Asked) -> Sentence | None:
    if refusal.kind != "InvalidKeyException":
        return None
    return Sentence(
        "TorchServe wants a token for each request",
        "roll out with disable_token_authorization=true, kdeploy's default: kdeploy rollout",
    )


def _forbidden(refusal: Refusal, _asked: Asked) -> Sentence | None:
    if refusal.status == 401:
        return Sentence(
            "the request carries no valid credentials",
            "give a token: --token @FILE, or KDEPLOY_TOKEN",
        )
    if refusal.status != 403:
        return None
    if "RBAC" in refusal.text:
        return Sentence(
            "an Istio AuthorizationPolicy does not allow this request",
            "give the token of an allowed account with --token @FILE, or have the policy allow it",
        )
    return Sentence(
        "these credentials may not ask this model",
        "give those of an account that may: --token @FILE, or --cookie NAME=@FILE",
    )


def _missing(refusal: Refusal, asked: Asked) -> Sentence | None:
    if refusal.status != 404:
        return None
    no_model = refusal.kind.startswith("Model") or "does not exist" in refusal.text
    if no_model:
        return Sentence(
            f"there is no model {asked.model} on this server",
            "see which there are: kdeploy models list; the model's name must be the InferenceService's",
        )
    if refusal.speaker in ("TorchServe", "the model server") or refusal.text == "Not Found":
        return Sentence("this server has no such path", "try the other protocol: with --kserve, or without")
    host = f"the Host header {asked.host}" if asked.host else "a request without a Host header of its own"
    return Sentence(
        f"the ingress knows no service for {host}",
        "see the service's host in its URL: kdeploy status; if there is none: kdeploy rollout",
    )


def _too_large(refusal: Refusal, asked: Asked) -> Sentence | None:
    if refusal.status != 413:
        return None
    live = "which is more than the live limit" if asked.size <= asked.limit else "which is too large"
    return Sentence(
        f"the request has {asked.size} bytes, {live}",
        "raise serving.max-request-size in kdeploy.toml and roll out: kdeploy rollout "
        f"(it is {asked.limit}; an ingress may have a limit of its own)",
    )


def _resources(refusal: Refusal, _asked: Asked) -> Sentence | None:
    if refusal.status != 507:
        return None
    return Sentence(
        "the worker is out of memory (or its GPU failed)",
        "lower serving.batch-size or raise serving.memory, then kdeploy rollout; what it was: kdeploy logs",
    )


def _by_text(refusal: Refusal, _asked: Asked) -> Sentence | None:
    return next((sentence for words, sentence in _TEXTS if words in refusal.text), None)


_TEXTS = (
    (
        "no worker to serve",
        Sentence(
            "no worker takes the request: none has started, or the queue is full",
            "see the workers: kdeploy models describe; why one does not start: kdeploy logs",
        ),
    ),
    (
        "Worker died",
        Sentence(
            "the worker died or did not answer within serving.response-timeout, and is restarted",
            "see why: kdeploy logs; if it says 'Message size exceed limit', raise serving.max-response-size;"
            " if the model is just slow, raise serving.response-timeout",
        ),
    ),
    (
        "serving.max-response-size is",
        Sentence(
            "the answer is too large",
            "raise serving.max-response-size in kdeploy.toml, then kdeploy rollout;"
            " or send fewer rows in one request",
        ),
    ),
    (
        "no time to try this row alone",
        Sentence(
            "another row of the same batch failed",
            "send the request again; see which row failed: kdeploy logs",
        ),
    ),
    (
        "batch response mismatched",
        Sentence(
            "the handler did not return one answer for each request of the batch",
            "kdeploy's own adapter takes care of that: kdeploy rollout; or set serving.batch-size = 1",
        ),
    ),
    (
        "Prediction failed",
        Sentence("the handler failed on this input", "see its traceback: kdeploy logs"),
    ),
    (
        "Invalid model predict output",
        Sentence("the handler returned what TorchServe cannot send", "return a list with one entry per row"),
    ),
    (
        "is not ready",
        Sentence("the model is not loaded yet, or failed to load", "see which: kdeploy status, kdeploy logs"),
    ),
    (
        "not JSON serializable",
        Sentence("KServe's wrapper could not read the body as JSON", "send V1: kdeploy predict --kserve"),
    ),
)


def _handler(refusal: Refusal, _asked: Asked) -> Sentence | None:
    if refusal.kind != "row" and (refusal.kind, refusal.status) not in (("error", 400), ("error", 500)):
        return None
    if refusal.status == 400:
        return Sentence(
            "the model does not accept this input", "compare the file with what the handler expects"
        )
    return Sentence("the model failed on this input", "see the traceback: kdeploy logs")


def _unavailable(refusal: Refusal, _asked: Asked) -> Sentence | None:
    if refusal.status in (502, 503):
        return Sentence(
            "the service is not ready, or scales up from zero",
            "see what it waits for: kdeploy status, kdeploy logs; then ask again",
        )
    if refusal.status in (408, 504):
        return Sentence(
            "the model did not answer in the time that the server allows",
            "see what the workers do: kdeploy logs; raise serving.response-timeout",
        )
    if refusal.status == 429:
        return Sentence("too many requests at once", "ask again later, or raise scaling.max-replicas")
    return None


def _otherwise(refusal: Refusal, _asked: Asked) -> Sentence:
    if refusal.status >= 500:
        return Sentence("the server failed", "see why: kdeploy logs")
    return Sentence("the request was refused", "see the service and its URL: kdeploy status")


_RULES: tuple[Callable[[Refusal, Asked], Sentence | None], ...] = (
    _login,
    _token,
    _forbidden,
    _missing,
    _too_large,
    _resources,
    _by_text,
    _handler,
    _unavailable,
    _otherwise,
)
