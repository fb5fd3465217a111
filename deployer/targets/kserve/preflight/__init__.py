"""Checks before the first write whether a cluster can serve a release."""
