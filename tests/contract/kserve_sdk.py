"""Documents through the typed models of KServe's SDK and back, run by its own Python: JSON in, JSON out."""

from __future__ import annotations

import json
import sys

import kserve.models
from kubernetes import client

# The SDK's models refer by name to those of the Kubernetes client, whose decoder knows none but its own, and
# another way of writing a dict's type.
for name, model in vars(kserve.models).items():
    if hasattr(model, "openapi_types") and not hasattr(client.models, name):
        types = {key: of.replace("(", "[").replace(")", "]") for key, of in model.openapi_types.items()}
        model.openapi_types = types
        setattr(client.models, name, model)

TYPES = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}
api = client.ApiClient()
typed = [api._ApiClient__deserialize(document, TYPES[document["kind"]]) for document in json.load(sys.stdin)]
json.dump(api.sanitize_for_serialization(typed), sys.stdout)
