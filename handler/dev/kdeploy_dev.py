"""TorchServe's entry point in `kdeploy dev`: the adapter, in a worker that survives a handler's failed load.

TorchServe restarts a worker whose handler cannot be loaded, again and again, and a worker that it stops while
it waits for that comes back. So this worker stays: it writes the reason to a file, and answers 503 until a
new worker replaces it.
"""

import json
import sys
import traceback
from pathlib import Path

import kdeploy_handler

FAILURE = "kdeploy_dev.error"  # in the model's folder; its text is the reason

_reason = ""


def handle(data, context):
    """Load the handler on the first call, which has no data; answer a batch on later ones."""
    global _reason  # noqa: PLW0603
    if _reason:
        return [_refuse(index, context) for index, _ in enumerate(data)]
    if data is not None:
        return kdeploy_handler.handle(data, context)
    folder = Path(context.system_properties["model_dir"]).resolve()
    (folder / FAILURE).unlink(missing_ok=True)
    try:
        return kdeploy_handler.handle(data, context)
    except (Exception, SystemExit) as error:
        own, place = _own_part(error.__traceback__, folder)
        sys.stdout.write("".join(traceback.format_exception(type(error), error, own)))
        sys.stdout.flush()
        _reason = f"{type(error).__name__}: {error}{place}"
        (folder / FAILURE).write_text(_reason, encoding="utf-8")
        return None


def _own_part(trace, folder):
    """Return the traceback from the first frame of the user's files on, and the place of the last one."""
    own, place = None, ""
    step = trace
    while step:
        file = Path(step.tb_frame.f_code.co_filename)
        if file.is_absolute() and folder in file.resolve().parents and not file.name.startswith("kdeploy_"):
            own = own or step
            place = f" ({file.name}, line {step.tb_lineno})"
        step = step.tb_next
    return own or trace, place


def _refuse(index, context):
    context.set_response_status(503, "", index)
    context.set_response_content_type(index, "application/json")
    return json.dumps({"error": f"the handler cannot be loaded: {_reason}"}).encode()
