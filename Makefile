# `make` prints what there is. PYTHON=... chooses another Python (3.11 or newer), SERVERS=env|docker|local the servers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What shares a pair of servers that it breaks, or a fixture of its module, stays together (tests/grouping.py).
SIDE_BY_SIDE := -n auto --dist loadscope --no-loadscope-reorder
PROOF := tests/dev tests/model
# Python keeps what it compiled, whatever the shell says: to rewrite the asserts of all tests takes longer than to load them.
test test-fast proof: export PYTHONDONTWRITEBYTECODE :=
# Unless ARGS names its tests.
PRODUCT = $(if $(findstring tests/,$(ARGS)),,$(addprefix --ignore=,$(PROOF)))

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast proof fuzz bench up down lint chaos sabotage currencies

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | while IFS='	' read -r name does; do printf 'make %-10s %s\n' "$$name" "$$does"; done

demo: $(VENV)/.made ## replay the bundled real orders through the whole system, from nginx to done
	@$(BIN)/python -m dev.sandbox.demo

test: $(VENV)/.made ## run the product's tests on real servers, several side by side (ARGS=... for pytest; -n0: one by one)
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(PRODUCT) $(ARGS)

test-fast: $(VENV)/.made ## run those of the product's tests that need no servers
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -q -m "not servers" $(PRODUCT) $(ARGS)

proof: $(VENV)/.made ## run the tests of sandbox, chaos, bench and sabotage, and search the models of the protocols
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) $(PROOF) $(ARGS)

fuzz: $(VENV)/.made ## send 20,000 requests and more made from the OpenAPI document to a service of its own
	@FUZZ_CASES=$${FUZZ_CASES:-20000} FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-500} $(BIN)/python -m pytest -s tests/orders/api/test_openapi.py $(ARGS)

bench: $(VENV)/.made ## measure (ONLY=relay is one of them; FULL=1 is the long form)
	@$(BIN)/python -m dev.bench $(ONLY)

up: $(VENV)/.made ## start the system in the background, or heal and rescale it (APIS=3 RELAYS=1 WORKERS=1)
	@$(BIN)/python -m dev.sandbox.supervisor up

down: $(VENV)/.made ## end what `make up` started
	@$(BIN)/python -m dev.sandbox.supervisor down

chaos: $(VENV)/.made ## break the whole system by the schedule of a seed, and check what is left (ARGS="--seed 1-12 --minutes 5")
	@$(BIN)/python -m dev.chaos $(ARGS)

sabotage: $(VENV)/.made ## plant known bugs in copies of the tree, and see that a test catches each (ARGS="S1 S5", ARGS=--list)
	@$(BIN)/python -m dev.sabotage $(ARGS)

currencies: $(VENV)/.made ## compare the currency codes with the newest list of ISO 4217, and say what to do (not part of CI)
	@$(BIN)/python -m dev.currencies

lint: $(VENV)/.made ## ruff, mypy --strict, the import contracts, and no leftovers of a merge
	@! git grep -nE '^(<<<<<<<|>>>>>>>)( |$$)'
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=src:. $(BIN)/lint-imports --no-logo

$(VENV)/.made: requirements-dev.lock pyproject.toml
	@dev/sandbox/make-venv $(PYTHON) $(VENV)
	@touch $@
