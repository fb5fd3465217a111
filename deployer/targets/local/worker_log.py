"""Finds in a line of TorchServe's log what the handler wrote. Pure."""

from __future__ import annotations

import re

_LINE = re.compile(r"^\S+ \[(?P<level>\w+) *\] \S+ (?P<logger>\S+) - (?P<text>.*)$")
_REQUEST = re.compile(r'^/\S+ "(?P<request>\w+ (?P<path>\S+)) HTTP/[\d.]+" (?P<status>\d+) (?P<ms>\d+)$')
_API = re.compile(r"/(models|ping|metrics|api-description)\b")  # requests of kdeploy, not predictions

# What TorchServe's worker process writes itself, in ts/model_service_worker.py and ts/service.py of 0.12.
_OF_WORKER = re.compile(
    r"s_name_part0=|Listening on (port|addr)|Successfully loaded .*\.yaml\.|\[PID\] ?\d+$"
    r"|Torch worker started\.$|Python runtime: |Connection accepted: |model_name: .*, batchSize: "
    r"|Backend received inference at: |Frontend disconnected\.$|Backend worker process died\.$|TS_METRICS"
    r"|Enabled tensor cores"
)


def handler_line(line: str) -> str | None:
    """Return what the handler wrote or which request was answered; None for the rest of the log."""
    logged = _LINE.match(line)
    if logged is None:
        return None
    if logged["logger"] == "MODEL_LOG":
        return None if _OF_WORKER.match(logged["text"]) else logged["text"]
    if logged["logger"] == "ACCESS_LOG" and (request := _REQUEST.match(logged["text"])):
        shown = f"{request['request']} {request['status']} in {request['ms']} ms"
        return None if _API.match(request["path"]) else shown
    return None
