"""The files that `kdeploy init` writes: a config and a handler to start from."""

from __future__ import annotations

import re
from pathlib import Path

from deployer.config import FILE_NAME, NAME_MAX, NAME_PATTERN
from deployer.errors import ConfigError
from deployer.files import exists

_CONFIG = """\
# What kdeploy makes of this folder. `kdeploy config` shows every key, its value and its source.

[model]
name = "{name}"                  # the InferenceService is called this, too
version = "1.0"
handler = "handler.py"
serialized-file = "model.pt"     # your trained weights
# model-file = "model.py"        # the architecture, when the weights are a state dict
# requirements-file = "requirements.txt"
# extra-files = ["labels.json"]

[serving]
batch-size = 8                   # requests that the handler gets in one call
max-batch-delay = 50             # milliseconds
gpu = 0

[store]
uri = "model-store"

[targets.local]
kind = "local"
"""

_HANDLER = '''\
"""Answers requests to the model. TorchServe loads this file; `kdeploy rollout` packs it."""

import base64
import io
from pathlib import Path

import torch
from PIL import Image


class Handler:
    """One instance per worker."""

    def initialize(self, context):
        """Load the model once."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        cuda = torch.cuda.is_available() and gpu is not None
        self.device = torch.device(f"cuda:{gpu}" if cuda else "cpu")
        weights = Path(properties["model_dir"]) / context.manifest["model"]["serializedFile"]
        self.model = torch.jit.load(str(weights), map_location=self.device).eval()

    def handle(self, data, context):
        """Answer a batch: one row a request, one answer a row."""
        batch = torch.stack([self.preprocess(row) for row in data]).to(self.device)
        with torch.inference_mode():
            scores = self.model(batch).softmax(dim=1)
        return [{"class": int(row.argmax()), "confidence": float(row.max())} for row in scores]

    def preprocess(self, row):
        """Turn a row, base64 text or bytes, into a tensor of shape (3, 224, 224)."""
        image = row.get("data") or row.get("body")
        if isinstance(image, str):
            image = base64.b64decode(image)
        picture = Image.open(io.BytesIO(image)).convert("RGB").resize((224, 224))
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return pixels.reshape(224, 224, 3).permute(2, 0, 1).float() / 255
'''


def write_project(folder: Path, name: str, *, force: bool = False) -> list[Path]:
    """Write `kdeploy.toml` and `handler.py` and return their paths.

    Raises ConfigError, before writing any, if one exists already.
    """
    if not re.match(NAME_PATTERN, name) or len(name) > NAME_MAX:
        raise ConfigError(
            f"invalid model name {name!r}",
            hint=f"lower-case letters, digits and -, a letter first, at most {NAME_MAX} characters",
        )
    files = {folder / FILE_NAME: _CONFIG.format(name=name), folder / "handler.py": _HANDLER}
    existing = [path for path in files if exists(path)]
    if existing and not force:
        raise ConfigError("file exists already", where=str(existing[0]), hint="--force replaces it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(error.filename)) from error
    return list(files)
