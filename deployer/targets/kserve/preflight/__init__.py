"""Refuses early: what a cluster lacks for a release, found out before the first write."""
