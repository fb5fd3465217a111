"""Predictions: what is sent for a file, how it is asked for, and what the answer means.

`codecs`, `refusals` are pure; `images` reads files; `connection` is the one way out. Importing this room
loads neither urllib3 nor Pillow.
"""

from deployer.predict.client import Client, Failure, Prediction, predict_files
from deployer.predict.codecs import Payload, Protocol, Request
from deployer.predict.images import FittedImage, Resized, fit_image
from deployer.predict.models import Models, RegisteredModel

__all__ = [
    "Client",
    "Failure",
    "FittedImage",
    "Models",
    "Payload",
    "Prediction",
    "Protocol",
    "RegisteredModel",
    "Request",
    "Resized",
    "fit_image",
    "predict_files",
]
