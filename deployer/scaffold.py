"""The files that `kdeploy init` writes: a kdeploy.toml and a handler to start from."""

from __future__ import annotations

import json
import re
from pathlib import Path

from deployer.config import FILE_NAME, NAME_MAX, NAME_PATTERN
from deployer.errors import ConfigError
from deployer.files import exists

_CONFIG = """\
# `kdeploy config` shows every setting, its value and its source.

[model]
name = "{name}"  # also the name of the InferenceService
version = "1.0"
handler = {handler}
serialized-file = {serialized_file}  # TorchScript, torch.export (.pt2) or a state dict
{model_file}  # the network's class, for a state dict
# requirements-file = "requirements.txt"
# extra-files = ["labels.json"]

[serving]
batch-size = 8  # requests per call of the handler, at most
max-batch-delay = 50  # milliseconds to wait for a full batch
gpu = 0

[store]
uri = "model-store"

[targets.local]
kind = "local"
"""

_HANDLER = '''\
"""Answers prediction requests for images. TorchServe loads this file."""

import base64
import importlib
import inspect
import io
from pathlib import Path

import torch
from PIL import Image

SIZE = (224, 224)  # height and width of the model's input
MODE = "RGB"  # "L" for grayscale


class Handler:
    """TorchServe creates one instance per worker."""

    def initialize(self, context):
        """Load the model once."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        cuda = torch.cuda.is_available() and gpu is not None
        self.device = torch.device(f"cuda:{gpu}" if cuda else "cpu")
        files = context.manifest["model"]
        weights = Path(properties["model_dir"]) / files["serializedFile"]
        self.model = load_model(weights, files.get("modelFile"), self.device)

    def handle(self, data, context):
        """Answer a batch: one answer for each row of data."""
        batch = torch.stack([read_image(row) for row in data]).to(self.device)
        with torch.inference_mode():
            outputs = self.model(batch)
        return [answer(output) for output in outputs]


def load_model(weights, model_file, device):
    """Load TorchScript, a torch.export program (.pt2), or a state dict into the class of model_file."""
    if model_file:
        module = importlib.import_module(Path(model_file).stem)
        classes = [value for value in vars(module).values() if inspect.isclass(value)]
        own = [value for value in classes if value.__module__ == module.__name__]
        networks = [value for value in own if issubclass(value, torch.nn.Module)]
        if len(networks) != 1:
            names = ", ".join(value.__name__ for value in networks) or "none"
            raise ValueError(f"{model_file} defines these networks: {names}. Create yours in load_model.")
        model = networks[0]()
        model.load_state_dict(torch.load(weights, map_location=device, weights_only=True))
        return model.to(device).eval()
    if weights.suffix == ".pt2":
        return torch.export.load(weights).module().to(device)
    try:
        return torch.jit.load(str(weights), map_location=device).eval()
    except RuntimeError as error:
        reason = "is not TorchScript. For a state dict, set model.model-file."
        raise ValueError(f"{weights.name} {reason}") from error


def read_image(row):
    """Turn a row (bytes or base64 text) into a float tensor of shape (channels, height, width), 0 to 1."""
    image = row.get("data") or row.get("body")
    if isinstance(image, str):
        image = base64.b64decode(image)
    picture = Image.open(io.BytesIO(image)).convert(MODE).resize(SIZE[::-1])
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.reshape(*SIZE, -1).permute(2, 0, 1).float() / 255


def answer(output):
    """Turn one output of the model into JSON: scores become the best class and its probability."""
    if output.dim() != 1:
        return output.tolist()
    scores = output.softmax(dim=0)
    return {"class": int(scores.argmax()), "confidence": float(scores.max())}
'''

IGNORED = ".kdeploy/\nmodel-store/\n"


def suggest_name(folder: Path) -> str:
    """Return a model name made of a folder's: lower case, `-` for every other character."""
    words = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).lstrip("-0123456789")
    return words[:NAME_MAX].rstrip("-") or "my-model"


def write_project(
    folder: Path,
    name: str,
    *,
    handler: str = "handler.py",
    serialized_file: str = "model.pt",
    model_file: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Write `kdeploy.toml`, and a handler and `.gitignore` unless they exist; return the paths written.

    Raises ConfigError, before writing any file, if `kdeploy.toml` exists, unless `force` replaces it.
    """
    if not re.match(NAME_PATTERN, name) or len(name) > NAME_MAX:
        raise ConfigError(
            f"invalid model name {name!r}",
            where="--name",
            hint=f"Use lower-case letters, digits and -, a letter first, at most {NAME_MAX} characters.",
        )
    config = _CONFIG.format(
        name=name,
        handler=json.dumps(handler),
        serialized_file=json.dumps(serialized_file),
        model_file=f"{'' if model_file else '# '}model-file = {json.dumps(model_file or 'model.py')}",
    )
    if exists(folder / FILE_NAME) and not force:
        raise ConfigError(
            "file already exists",
            where=str(folder / FILE_NAME),
            hint="Run `kdeploy init --force` to replace it.",
        )
    optional = {folder / handler: _HANDLER, folder / ".gitignore": IGNORED}
    files = {folder / FILE_NAME: config} | {path: text for path, text in optional.items() if not exists(path)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot write the project: {error.strerror}",
            where=str(error.filename),
            hint="Give yourself permission to write there, or choose another folder.",
        ) from error
    return list(files)
