"""TorchServe's limits for answers. TorchServe kills a worker that exceeds them, with its whole batch.

TorchServe compares `max_response_size` with each answer, and with each piece of a streamed one. The sum of a
batch's answers has no limit.
"""

import json
import logging
import os
import re
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

CONFIG_FILE = "/mnt/models/config/config.properties"  # KServe's path

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,1024}")
_VALUE = re.compile(r"[\t -~\x80-\ud7ff\ue000-\U0010ffff]{0,65536}")
_ASCII = re.compile(r"[\t -~]{0,65536}")  # TorchServe counts characters of these, and sends bytes

logger = logging.getLogger("kdeploy_handler")


class UnsendableError(ValueError):
    """TorchServe cannot send an answer. The message is for the client."""


class Limits(NamedTuple):
    """The maximum size of an answer in bytes, and the seconds until TorchServe kills a silent worker."""

    response_size: int = 6_553_500
    response_timeout: int = 120


DEFAULTS = Limits()  # TorchServe's


def read_limits(context):
    """Read the limits of this model from TorchServe's config file. Missing ones have their defaults."""
    path = os.environ.get("TS_CONFIG_FILE") or CONFIG_FILE
    size, timeout = DEFAULTS
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        entries = {key.strip(): value for key, _, value in (line.partition("=") for line in lines)}
        size = int(entries.get("max_response_size", size))
        models = json.loads(entries.get("model_snapshot", "{}")).get("models", {})
        for version in models.get(context.model_name, {}).values():
            timeout = int(version.get("responseTimeout", timeout))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("Cannot read TorchServe's limits from %s, using the defaults: %s", path, error)
    return Limits(size, timeout)


def check_size(size, limit, what="the answer"):
    """Raise UnsendableError for more bytes than TorchServe accepts."""
    if size > limit:
        raise UnsendableError(f"{what} has {size:,} bytes, serving.max-response-size is {limit:,}")


def check_head(context, index):
    """Raise UnsendableError for a status or a header that is invalid in HTTP."""
    status, phrase = context.get_response_status(index)
    is_valid = status is None or (isinstance(status, Integral) and 200 <= status < 1000)
    if not (is_valid and _matches(_ASCII, phrase or "")):
        raise UnsendableError(f"the handler set an invalid status: {status!r} {phrase!r}"[:200])
    for name, value in context.get_response_headers(index).items():
        form = _ASCII if name == "content-type" else _VALUE
        if not (_matches(_NAME, name) and _matches(form, value)):
            raise UnsendableError(f"the handler set an invalid header: {name!r}: {value!r}"[:200])


def _matches(form, text):
    return isinstance(text, str) and form.fullmatch(text)
