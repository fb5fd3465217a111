"""`python -m deployer` is `kdeploy`."""

from deployer.cli import main

main()
