# Everything runs from this folder with relative paths, so a blank in the path does no harm.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

# The rooms that decide and do not do: every branch of them is tested.
PURE := storage_access archive cli.view config diff events history inuse load_log managed_fields manifest predict.codecs properties proxies prune quantity release rollout target \
        targets.kserve.state targets.kserve.preflight.admission targets.kserve.preflight.quotas
COVERED := $(PURE:%=--cov=deployer.%) --cov-branch --cov-fail-under=100 --cov-report=term-missing:skip-covered

# Tests whose servers are patient, and that wait much: three at a time, for two cores. The rest measures real
# TorchServes, and is left alone.
PAIRED := tests/cluster tests/contract tests/stores tests/examples $(filter-out %_torchserve.py, $(wildcard tests/handler/test_*.py))

# Hundreds of processes start in the tests: each would compile kdeploy anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults e2e lint type bench docs build clean

help:  ## Show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(READY)  ## Make .venv with everything that the demo and the tests need

$(READY): pyproject.toml constraints.txt
	@echo "== setting up $(VENV): about a minute with a warm pip, a few without"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "kdeploy needs Python 3.10 or newer; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,examples,dev]'
	@touch $@

demo: setup  ## Train the example, push it, roll it out, ask it through the ingress, stop it again
	@examples/digits/demo.sh "$(CURDIR)/$(VENV)/bin/python"

test: setup  ## Run every test
	@echo "== testing: real TorchServes on loopback, a few minutes on two cores"
	@$(RUN) -m pytest -n 2 tests/unit $(COVERED)
	@$(RUN) -m pytest -n 3 --dist loadfile $(PAIRED)
	@$(RUN) -m pytest tests --ignore tests/unit --ignore tests/e2e $(PAIRED:%=--ignore %)

faults: setup  ## Fail each request of each command to a cluster in every way, for ever: ten minutes
	@KDEPLOY_TESTS_ALL_FAULTS=1 $(RUN) -m pytest tests/cluster/test_faults.py

e2e: setup  ## Test on a real cluster with KServe, which KDEPLOY_E2E_CONTEXT names
	@$(RUN) -m pytest tests/e2e

lint: setup  ## Check style, formatting and which room may import which
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -c "from importlinter.cli import lint_imports_command as lint; lint()"

type: setup  ## Check types, strictly
	@$(RUN) -m mypy

bench: setup  ## Measure speed side by side with its peers
	@echo "== bench/: on a quiet machine, or the figures mean nothing"
	@for bench in archive.py "archive.py --over-4-gib" commands.py batching.py front.py ingress.py upload.py waiting.py cluster.py events.py; do echo "== $$bench"; $(RUN) bench/$$bench || failed=1; done; exit $${failed:-0}

docs: setup  ## Write the reference pages that are made from the code
	@$(RUN) docs/generate.py

build: setup  ## Build the wheel and the source distribution into dist/
	@$(RUN) -m build --outdir dist .

clean:  ## Remove what the above made, but the model store
	@rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
