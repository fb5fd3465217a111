"""The command line: a command parses its flags, calls one function, and prints the result."""

from deployer.cli.main import complete_for_kubectl, main

__all__ = ["complete_for_kubectl", "main"]
