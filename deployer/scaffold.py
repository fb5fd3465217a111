"""The files that `kdeploy init` writes: a kdeploy.toml and a handler to start from."""

from __future__ import annotations

import json
import re
from pathlib import Path

from deployer.config import FILE_NAME, NAME_MAX, NAME_PATTERN, to_service_name
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
import pickle
import zipfile
from pathlib import Path

import torch
from PIL import Image

SIZE = (224, 224)  # height and width of the model's input
MODE = "RGB"  # "L" for grayscale
PREFIXES = ("", "module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile and Lightning


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
    """Load TorchScript, a torch.export program (.pt2), or a state dict into the network of model_file."""
    if weights.suffix == ".pt2":
        return torch.export.load(weights).module().to(device)
    if is_torchscript(weights):
        return torch.jit.load(str(weights), map_location=device).eval()
    if not model_file:
        raise ValueError(f"{weights.name} is not TorchScript. For a state dict, set model.model-file.")
    return fill_network(model_file, read_state_dict(weights)).to(device).eval()


def is_torchscript(weights):
    """Return whether a file was written by torch.jit.save."""
    if not zipfile.is_zipfile(weights):
        return False
    with zipfile.ZipFile(weights) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_state_dict(weights):
    """Read a state dict, also one in a checkpoint. Runs no code from the file."""
    if weights.suffix == ".safetensors":
        return importlib.import_module("safetensors.torch").load_file(weights)
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{weights.name} contains Python objects, such as a whole module, and loading them can run any "
            "code. Save the weights only: torch.save(model.state_dict(), 'model.pt')"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise ValueError(f"{weights.name} is not a state dict, but a {type(state).__name__}.")
    return state


def fill_network(model_file, state):
    """Create the network of model_file that the weights fit, and load them into it."""
    module = importlib.import_module(Path(model_file).stem)
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    networks = [value for value in classes if issubclass(value, torch.nn.Module)]
    own = [value for value in networks if value.__module__ == module.__name__]
    for network in own:
        try:
            model = network()
        except TypeError:
            continue  # it needs arguments, as a part of another network does
        names = model.state_dict().keys()
        for prefix in PREFIXES:
            named = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
            if named.keys() == names:
                model.load_state_dict(named)
                return model
    if len(own) == 1:
        own[0]().load_state_dict(state)  # raises an error that names the differences
    names = ", ".join(value.__name__ for value in own) or "none"
    raise ValueError(f"The weights fit no network of {model_file} ({names}). Create yours in fill_network.")


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
    return to_service_name(folder.resolve().name) or "my-model"


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
    optional = {folder / ".gitignore": IGNORED}
    if handler.endswith(".py"):  # neither a handler of TorchServe nor a function in a file
        optional[folder / handler] = _HANDLER
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
