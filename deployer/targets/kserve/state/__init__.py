"""Reads the objects that KServe, Knative and Kubernetes write for a service. Pure."""
