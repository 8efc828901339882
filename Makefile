# Everything is set up from here: `make demo` and `make test` need only Python 3.10–3.13 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One BLAS thread for each test process; the processes run side by side.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet

.DEFAULT_GOAL := help
.PHONY: help demo test lint format nightly bench docs stubs clean

help:  ## show what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/made:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else f"needle needs Python 3.10 to 3.13, this is {v[0]}.{v[1]}; say which with make PYTHON=...")'
	@echo "setting up $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/package: pyproject.toml hatch_build.py $(VENV)/made
	@echo "installing needle"
	$(PIP) --editable .
	@touch $@

$(VENV)/tools: $(VENV)/package
	@echo "installing the tools for tests"
	$(PIP) --editable '.[test,lint]'
	@touch $@

# The peers' wheels do not exist for every Python and machine. Without them the comparisons are left out, which
# `make test` says; in CI that is an error.
$(VENV)/peers: $(VENV)/tools
	@echo "installing the frameworks to compare with"
	@$(PIP) --editable '.[test,lint,peers]' \
	  || { echo "WARNING: PyTorch could not be installed: tests that compare with it are left out"; \
	       test -z "$$CI"; }
	@touch $@

demo: $(VENV)/package  ## train a model on real data; says where report and checkpoint lie
	$(BIN)/needle train digits --out runs/demo

test: $(VENV)/peers stubs  ## run the tests
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not nightly"

nightly: $(VENV)/peers stubs  ## run all tests, with the slow ones and the long fuzzers
	$(TEST_ENV) NEEDLE_NIGHTLY=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/tools stubs  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/tools  ## put the code in form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

stubs: $(VENV)/package  ## write the types of Tensor's methods from the op records
	@$(BIN)/python -m needle.testing.stubs

docs: $(VENV)/package  ## write docs/reference/ from the op records
	$(BIN)/python -m needle.testing.reference docs/reference

$(VENV)/runtimes: $(VENV)/peers
	@echo "installing the runtimes to compare inference with"
	@$(PIP) --editable '.[test,lint,peers,runtimes]' \
	  || echo "WARNING: ONNX Runtime or OpenVINO could not be installed: their columns are left out"
	@touch $@

bench: $(VENV)/runtimes  ## measure needle beside PyTorch, JAX and runtimes; writes the README's table
	$(BIN)/python -m benchmarks --write

clean:  ## remove all that was made here
	rm -rf $(VENV) build dist runs docs/reference src/needle/_methods.pyi .pytest_cache .mypy_cache .ruff_cache .hypothesis
