"""Applies, watches and reads a service on a cluster: what a command calls."""
