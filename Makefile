# Everything runs from this folder with relative paths, so a blank in the path does no harm.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

# What `make full` adds to `make test`.
MORE :=

# The tests start hundreds of processes. Without cached bytecode, each would compile kdeploy again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo unit test full e2e lint type bench docs site build clean

help:  ## Show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(READY)  ## Make .venv with everything that the demo and the tests need

# Python compiles a module when it is first imported. To compile all of torch here takes a minute more.
$(READY): pyproject.toml constraints.txt
	@echo "== setting up $(VENV): about a minute with a warm pip, a few without"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "kdeploy needs Python 3.10 or newer; name one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[local,examples,dev]'
	@touch $@

demo: setup  ## Train the example, push it, roll it out, ask it through the ingress, stop it again
	@examples/digits/demo.sh "$(CURDIR)/$(VENV)/bin/python"

unit: setup  ## Run the unit tests: half a minute on two cores
	@$(RUN) -m pytest -q -n 2 --hypothesis-profile quick tests/unit

# The unit tests cover every branch of the pure modules; tests/effects.py finds which modules those are. The other tests
# wait more than they compute: three files at a time on two cores.
test: setup  ## Run the tests that a change must pass: real TorchServes on loopback, ten minutes on two cores
	@$(RUN) -m pytest -n 2 $(MORE) tests/unit --cov=deployer --cov-branch --cov-report=
	@$(RUN) -m coverage report --include="$$($(RUN) -m tests.effects)" --skip-covered --show-missing --fail-under=100
	@$(RUN) -m pytest -n 3 --dist loadfile $(MORE) tests --ignore tests/unit --ignore tests/e2e

full: setup  ## Run everything: the long tests, every fault of every request, ten times the examples of any input
	@KDEPLOY_TESTS_FULL=1 $(MAKE) test MORE="-m 'full or not full'"

e2e: setup  ## Test on a real cluster with KServe, which KDEPLOY_E2E_CONTEXT names
	@$(RUN) -m pytest tests/e2e

lint: setup  ## Check style, formatting, import contracts and the wording of docs/style.md
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -c "from importlinter.cli import lint_imports_command as lint; lint()"
	@$(RUN) -m tests.style

type: setup  ## Check types, strictly
	@$(RUN) -m mypy

bench: setup  ## Measure speed side by side with its peers
	@echo "== bench/: on a quiet machine, or the figures mean nothing"
	@for bench in archive.py "archive.py --over-4-gib" commands.py batching.py front.py ingress.py upload.py waiting.py cluster.py events.py dev.py; do echo "== $$bench"; $(RUN) bench/$$bench || failed=1; done; exit $${failed:-0}

docs: setup  ## Write the reference pages and the README's picture from the code and a real run
	@$(RUN) -m docs.generate
	@$(RUN) -m docs.session

# Without the environment of the previous build: Sphinx repeats no warning for a page that has not changed.
site: setup  ## Check the documentation against the program and build it into site/; a broken link is an error
	@$(RUN) -m pytest -q tests/unit/test_docs.py
	@rm -rf site
	@$(RUN) -m sphinx --quiet --fresh-env --fail-on-warning --keep-going -c docs -d build/doctrees . site
	@echo "open site/index.html"

build: setup  ## Build the wheel and the source distribution into dist/
	@$(RUN) -m build --outdir dist .

clean:  ## Remove what the above made, but the model store
	@rm -rf $(VENV) dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
