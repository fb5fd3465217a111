"""What TorchServe calls: images in, digits out, a whole batch in one pass of the network.

TorchServe makes one `DigitsHandler` per worker, calls `initialize` once, and then `handle` with as many
rows as `serving.batch-size` allows. Written for the serving image's Python 3.9.
"""

import base64
import io

import humanize  # from requirements.txt: TorchServe installs it when it loads the model
import numpy as np
import torch
from model import INK, SIDE, DigitsNet
from PIL import Image


class DigitsHandler:
    """Reads digits, dark ink on light paper."""

    def initialize(self, context):
        """Load the weights from where TorchServe has unpacked the model archive."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        on_gpu = gpu is not None and torch.cuda.is_available()
        self.device = torch.device(f"cuda:{gpu}" if on_gpu else "cpu")
        weights = f"{properties['model_dir']}/{context.manifest['model']['serializedFile']}"
        self.network = DigitsNet()
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.network.to(self.device).eval()

    def handle(self, data, context):  # noqa: ARG002 - TorchServe passes it
        """Answer a batch: one row per request in, one answer per row out, in the same order."""
        return self.postprocess(self.inference(self.preprocess(data)))

    def preprocess(self, rows):
        """Turn rows, each an image file as bytes or as base64 text, into (n, 8, 8) of ink from 0 to 16."""
        return torch.from_numpy(np.stack([scan(image_file(row)) for row in rows]))

    @torch.inference_mode()
    def inference(self, scans):
        """Give the probability of each digit, (n, 10), running the network once for the whole batch."""
        return self.network(scans.to(self.device)).softmax(dim=1).cpu()

    def postprocess(self, probabilities):
        """Give one answer per row of probabilities, in the same order."""
        return [answer(row) for row in probabilities.tolist()]


def image_file(row):
    """Take the image file out of a row: JSON brings it as base64 text, other requests as bytes."""
    value = row.get("data") or row.get("body")
    return io.BytesIO(base64.b64decode(value) if isinstance(value, str) else value)


def scan(file):
    """Bring an image of any size into the form that the network has learned: (8, 8), 0 paper, 16 ink.

    A box filter takes the mean of each of the 64 fields, so a scan that was enlarged by whole pixels
    comes back exactly as it was.
    """
    with Image.open(file) as image:
        image.draft("L", (SIDE, SIDE))  # has a large JPEG decoded at an eighth of its size: much faster
        grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.rint((255 - np.asarray(grey, dtype=np.float32)) * INK / 255)


def answer(probabilities):
    """Say which digit is the likeliest of ten, in words too, and how likely it is."""
    confidence = max(probabilities)
    digit = probabilities.index(confidence)
    return {"digit": digit, "word": humanize.apnumber(digit), "confidence": round(confidence, 4)}
