# SPDX-License-Identifier: Apache-2.0
# Each target does its own set-up (tests/setup/setup) and skips what is already done.

SHELL := /bin/bash
SETUP := tests/setup/setup
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=

# The environment holds hpcpod as it is installed; nothing else may stand in its way.
unexport PYTHONPATH PYTHONHOME

# Asked for after the set-up: where the environment is depends on who runs this, and from where.
python = "$$($(SETUP) where)"/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a two-node Slurm, a real image and its MPI ranks in hpcpod; as a plain user: without Slurm
	@$(SETUP) packages build demo
	@$(SETUP) venv
	@$(python) -m tests.testbed.demo $(DEMO_ARGS)

test: ## all tests; what this machine cannot run is skipped with the reason (PYTEST_ARGS=--require=all: fails)
	@$(SETUP) packages build demo test vm bench
	@$(SETUP) sid
	@$(SETUP) kernel
	@$(SETUP) venv
	@$(python) -P -m pytest $(PYTEST_ARGS)

lint: ## style, types, import rules, sizes, documentation
	@$(SETUP) packages build
	@$(SETUP) venv
	@$(python) -P -m pytest tests/lint $(PYTEST_ARGS)

bench: ## against bubblewrap, crun, Charliecloud and umoci; results in build/bench (BENCH_ARGS=--quick: a first look)
	@$(SETUP) packages build demo bench
	@$(SETUP) venv
	@$(python) -m bench $(BENCH_ARGS)

clean: ## removes build/, .venv and what else was made for this checkout; keeps packages, /var/cache/hpcpod/images
	@$(SETUP) clean
