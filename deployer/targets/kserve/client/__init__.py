"""Speaks HTTP with the Kubernetes API: documents in and out, and nothing is known of KServe."""
