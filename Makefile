# Everything a developer does here. `make` alone lists it.
PYTHON ?= python3
TORCH ?= torch==2.13.0
# Which build of torch: cpu, cu128, rocm6.4, ... or auto for what fits this machine's driver.
TORCH_BACKEND ?= cpu

# The oldest releases of everything that kifuse takes, and a quick part of the tests that tells whether they do.
OLDEST := .venv-oldest
TESTS_OF_OLDEST := tests/unit/scoring tests/unit/knowledge/test_fusion.py tests/unit/adapters/test_kinds.py \
	tests/unit/adapters/test_stack.py tests/unit/driving/test_taps.py tests/unit/driving/test_given_rows.py \
	tests/contract/test_trainer_facts.py tests/integration/test_interruptions.py \
	tests/integration/test_standalone.py tests/integration/test_sft.py \
	'tests/contract/test_contract.py::test_a_run_that_is_stopped_ends_as_the_one_of_its_seed_that_was_not[recurrent-kif]'

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-oldest check docs bench format clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /:/' | awk -F: '{printf "make %-11s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## make .venv with everything that demo, test and check need

demo: setup ## train on a small stream of tasks and show what is forgotten
	$(BIN)/kifuse demo

test: setup ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-oldest: $(OLDEST)/.installed ## run a quick part of the tests with the oldest releases that kifuse takes
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(OLDEST)/bin/python -m pytest -q -n 2 -p no:cacheprovider $(TESTS_OF_OLDEST)

check: setup ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: setup ## time kifuse against its alternatives, as ratios (minutes; leave the machine alone)
	$(BIN)/python -m benchmarks.speed

docs: $(VENV)/.docs ## write the user guide to site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: setup ## format the code and mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and everything that can be made again, but no runs
	rm -rf $(VENV) $(OLDEST) .pytest_cache .ruff_cache .hypothesis build dist site
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# uv knows where each build of torch is kept; where it cannot reach that, pip takes the build it is offered.
# The system's certificates are those that pip uses too.
$(VENV)/.torch: $(VENV)/.made
	@$(PIP) install uv
	@$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --torch-backend=$(TORCH_BACKEND) '$(TORCH)' \
		2>$(VENV)/uv.log || { \
		echo "note: uv found no $(TORCH_BACKEND) build of $(TORCH) (see $(VENV)/uv.log); pip installs its own choice"; \
		$(PIP) install '$(TORCH)'; }
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.torch
	$(PIP) install -e '.[dev]'
	@touch $@

PUT_OLDEST = $(BIN)/uv pip install --quiet --system-certs --python $(OLDEST)/bin/python --resolution lowest-direct -e '.[dev]'

# as above: where uv cannot reach the builds of torch it takes the registry's own
$(OLDEST)/.installed: pyproject.toml $(VENV)/.torch
	$(PYTHON) -m venv $(OLDEST)
	@$(PUT_OLDEST) --torch-backend=$(TORCH_BACKEND) 2>$(OLDEST)/uv.log || { \
		echo "note: uv found no $(TORCH_BACKEND) build of torch (see $(OLDEST)/uv.log); it takes the one it is offered"; \
		$(PUT_OLDEST); }
	@touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.installed
	$(PIP) install -e '.[docs]'
	@touch $@
