"""The handler that TorchServe calls: images in, digits out, with one pass of the network per batch.

TorchServe creates one `DigitsHandler` per worker, calls `initialize` once, and then `handle` with up to
`serving.batch-size` rows. The code runs on the serving image's Python 3.9.
"""

import base64
import io

import humanize  # from requirements.txt; TorchServe installs it when it loads the model
import numpy as np
import torch
from model import INK, SIDE, DigitsNet
from PIL import Image


class DigitsHandler:
    """Recognizes digits: dark ink on light paper."""

    def initialize(self, context):
        """Load the weights from the folder of the unpacked model archive."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        on_gpu = gpu is not None and torch.cuda.is_available()
        self.device = torch.device(f"cuda:{gpu}" if on_gpu else "cpu")
        weights = f"{properties['model_dir']}/{context.manifest['model']['serializedFile']}"
        self.network = DigitsNet()
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.network.to(self.device).eval()

    def handle(self, data, context):  # noqa: ARG002 - TorchServe passes it
        """Answer a batch: one answer per row, in the same order."""
        return self.postprocess(self.inference(self.preprocess(data)))

    def preprocess(self, rows):
        """Turn rows, each an image file as bytes or base64 text, into scans: (n, 8, 8), ink from 0 to 16."""
        return torch.from_numpy(np.stack([scan(image_file(row)) for row in rows]))

    @torch.inference_mode()
    def inference(self, scans):
        """Return the probability of each digit, (n, 10). Runs the network once for the whole batch."""
        return self.network(scans.to(self.device)).softmax(dim=1).cpu()

    def postprocess(self, probabilities):
        """Return one answer per row of probabilities, in the same order."""
        return [answer(row) for row in probabilities.tolist()]


def image_file(row):
    """Return the image file of a row: base64 text in JSON, bytes in other requests."""
    value = row.get("data") or row.get("body")
    return io.BytesIO(base64.b64decode(value) if isinstance(value, str) else value)


def scan(file):
    """Reduce an image of any size to the network's input: (8, 8), from 0 for paper to 16 for ink.

    A box filter takes the mean of each of the 64 fields, so a scan that was enlarged by whole pixels
    becomes exactly the same scan again.
    """
    with Image.open(file) as image:
        image.draft("L", (SIDE, SIDE))  # decodes a large JPEG at an eighth of its size, which is much faster
        grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.rint((255 - np.asarray(grey, dtype=np.float32)) * INK / 255)


def answer(probabilities):
    """Return the most likely digit, its word and its probability."""
    confidence = max(probabilities)
    digit = probabilities.index(confidence)
    return {"digit": digit, "word": humanize.apnumber(digit), "confidence": round(confidence, 4)}
