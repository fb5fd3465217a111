"""Implements the three protocols of a target: applies, watches, lists and reaches services on a cluster."""
