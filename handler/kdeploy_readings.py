"""Finds out how a handler reads V1 and V2, so that a handler for plain TorchServe can stay as it is.

| reading | what the handler gets | its answer is |
|---|---|---|
| `request` | the request as TorchServe has it: `row["body"]["instances"]` | the request's whole answer |
| `values` | a row for each instance or input; its `body` is the value | one of the predictions |
| `objects` | the same, but the `body` of a value that is not an object is `{"data": value}` | one of them |

On TorchServe's own paths, such as `/predictions/NAME`, a request is read as `request`, or as `values` if that
fails. On other paths it is read as `values`, or as `objects` if that fails with the error of a wrong lookup.
But if a source file of the model contains the text `"instances"` (V1) or `"inputs"` (V2), `request` comes
first there: it is accepted if the handler looks that key up and answers. The first reading that succeeds is
kept.
"""

import re
import sys
from pathlib import Path
from typing import NamedTuple

from kdeploy_batching import is_streaming
from kdeploy_requests import Request
from kdeploy_v2 import BadRequestError

REQUEST, VALUES, OBJECTS = "request", "values", "objects"

_WRONG_LOOKUP = (KeyError, TypeError, AttributeError)
_UNREAD = re.compile(
    r"\binstances\b|['\"]inputs['\"]|^inputs$|indices must be integers|must be a mapping"
    r"|has no attribute '(get|keys|items|pop|values)'",
    re.MULTILINE,
)
_BODY_HINT = (
    'if the handler reads the whole body of a request, set body = "handler" in [model] of kdeploy.toml'
)
_ROWS_HINT = (
    "if the handler expects each row of the tensor by itself, "
    'set v2-rows = "first-dimension" in [model] of kdeploy.toml'
)


class Readings:
    """Lets a batcher answer requests, each as the handler reads it. `sources`: texts of the model's files."""

    def __init__(self, batcher, sources=()):
        self._batcher = batcher
        self._known = {}  # instances or inputs -> reading
        self._answered = set()  # instances or inputs, once the handler has answered such a request
        self._named = {  # whether `request` is to be tried
            key: any(re.search(rf"""["']{key}["']""", text) for text in sources)
            for key in ("instances", "inputs")
        }
        # A file that unpacks a body, such as `Request(**row["body"])`, has only the word: a field of a class.
        self._has_instances = any(re.search(r"\binstances\b", text) for text in sources)

    def answer(self, requests, context):
        """Return the answered requests in the same order. A V1 or V2 request is an `Asked`."""
        plans = [self._plan(request, context) for request in requests]
        self._batcher.run([plan.request for plan in plans if not plan.is_answered], context)
        return [self._settle(plan, context) for plan in plans]

    def _plan(self, asked, context):
        """Choose the first reading of a request. A call by itself finds out whether `request` is one."""
        if isinstance(asked, Request):
            return _Plan(asked)
        known = self._known.get(asked.key)
        if known and not asked.by_path:
            return _Plan(asked.read(known), asked)
        order = [REQUEST, VALUES, OBJECTS]
        if not (asked.by_path or self._named[asked.key]):
            order = [VALUES, OBJECTS] if asked.has_bare_rows else [VALUES]
        if len(order) > 1 and not asked.keep():
            order = order[:1] if asked.by_path else [VALUES]
        plan = _Plan(asked.read(order[0]), asked, order)
        if order[0] == REQUEST and not asked.by_path:
            self._try(plan.request, context)
            if not asked.looked_up:
                return _Plan(asked.read(VALUES, again=True), asked, [VALUES, OBJECTS])
            if plan.request.values:
                self._keep(asked, REQUEST)
        return plan

    def _settle(self, plan, context):
        """Return the answered request. If its first reading failed, try the others."""
        asked, answered, reading = plan.asked, plan.request, next(iter(plan.order), None)
        for other in plan.order[1:]:
            if answered.failure is None or is_streaming(context.request_processor[answered.index]):
                break
            if other == OBJECTS and not _can_be_object(answered):
                break
            try:
                answered, reading = asked.read(other, again=True), other
            except BadRequestError:
                break
            self._try(answered, context)
        if answered.failure is None:
            if reading and answered.values and not asked.by_path:
                self._keep(asked, reading)
            return answered
        failed = answered if _is_lookup(plan.request) and not _is_lookup(answered) else plan.request
        if asked and failed.write:
            failed.failure[1]["error"] += self._hint(asked, failed)
        return failed

    def _hint(self, asked, failed):
        """Return the setting that can help a failed request, as the end of its error; else ""."""
        names_it = asked.key == "instances" and self._has_instances and asked.key not in self._answered
        if names_it or _UNREAD.search(failed.failure[1]["error"]):
            return f"; {_BODY_HINT}"
        [row, *others] = failed.rows or [None]
        is_matrix = type(row) is list and len(row) > 1 and type(row[0]) is list
        return f"; {_ROWS_HINT}" if asked.reads_tensors and is_matrix and not others else ""

    def _keep(self, asked, reading):
        self._named[asked.key] = False
        self._answered.add(asked.key)
        if reading == REQUEST or asked.has_bare_rows:
            self._known.setdefault(asked.key, reading)

    def _try(self, request, context):
        request.is_trial = True
        self._batcher.run([request], context)


class _Plan(NamedTuple):
    """A request as it is read first, and the readings to try, in order."""

    request: Request
    asked: object = None
    order: list = ()

    @property
    def is_answered(self):
        return bool(self.request.values or self.request.failure)


def _is_lookup(request):
    """Return whether the error of a request can be that of a wrong lookup in a row."""
    return request.error is not None and issubclass(request.error, _WRONG_LOOKUP)


def _can_be_object(request):
    """Return whether a lookup failed in a row that is not an object."""
    return _is_lookup(request) and any(type(row) is not dict for row in request.rows)


class Body(dict):
    """The body of a request, which notes whether a handler looks its key up."""

    def __init__(self, body, key):
        super().__init__(body)
        self.kdeploy_key = key
        self.looked_up = False

    def _note(self, key):
        self.looked_up = self.looked_up or key == self.kdeploy_key

    def __getitem__(self, key):
        self._note(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        self._note(key)
        return super().__contains__(key)

    def get(self, key, default=None):
        """Look a key up, as dict does."""
        self._note(key)
        return super().get(key, default)

    def pop(self, key, *default):
        """Remove a key, as dict does."""
        self._note(key)
        return super().pop(key, *default)


def sources_of(model_dir):
    """Return the texts of the imported Python files in the model's folder, except the adapter's."""
    modules = list(sys.modules.values())
    files = {Path(module.__file__) for module in modules if getattr(module, "__file__", None)}
    own = [file for file in files if Path(model_dir) in file.parents and file.suffix == ".py"]
    own = [file for file in own if not file.name.startswith("kdeploy_")]
    return [file.read_text(encoding="utf-8", errors="replace") for file in own]
