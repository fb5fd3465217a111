"""The command line: a command parses, calls one function of the pipeline, and prints."""

from deployer.cli.main import main

__all__ = ["main"]
