"""Sends HTTP requests to the Kubernetes API: documents in and out, with no knowledge of KServe."""
