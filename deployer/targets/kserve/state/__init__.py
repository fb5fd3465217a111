"""Reads what KServe, Knative and Kubernetes wrote about a service. Pure: documents in, facts out."""
