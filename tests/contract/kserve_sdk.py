"""Converts documents to the models of KServe's SDK and back, in a process that only does this."""

from __future__ import annotations

import json
import sys

import kserve.models
from kubernetes import client

# The Kubernetes client's decoder finds only its own models, and reads another notation for a dict's type than
# the SDK's models have.
for name, model in vars(kserve.models).items():
    if hasattr(model, "openapi_types") and not hasattr(client.models, name):
        types = {key: of.replace("(", "[").replace(")", "]") for key, of in model.openapi_types.items()}
        model.openapi_types = types
        setattr(client.models, name, model)

TYPES = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}
api = client.ApiClient()
typed = [api._ApiClient__deserialize(document, TYPES[document["kind"]]) for document in json.load(sys.stdin)]
json.dump(api.sanitize_for_serialization(typed), sys.stdout)
