"""The command line: a command parses its flags, calls one function, and prints the result."""

from deployer.cli.main import main

__all__ = ["main"]
