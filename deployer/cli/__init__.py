"""The command line: a command parses its flags, calls one function, and prints the result."""

from deployer.cli.completion import complete_for_kubectl
from deployer.cli.main import main

__all__ = ["complete_for_kubectl", "main"]
