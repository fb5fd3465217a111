"""Predictions: encode a file as a request, send it, decode the response.

`content`, `codecs`, `answers`, `predict_errors`, and `vision` with `boxes` and `masks` are pure; `images`,
`inputs` and `drawing` read files; only `connection` opens connections. Importing this package loads neither
urllib3 nor Pillow.
"""

from deployer.predict.client import Client, Failure, Prediction
from deployer.predict.codecs import Protocol, Request
from deployer.predict.images import FittedImage, Resized, fit_image
from deployer.predict.models import Models, RegisteredModel

__all__ = [
    "Client",
    "Failure",
    "FittedImage",
    "Models",
    "Prediction",
    "Protocol",
    "RegisteredModel",
    "Request",
    "Resized",
    "fit_image",
]
