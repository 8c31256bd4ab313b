# make demo: segment a rendered scene.  make test: run all tests.  Both set up .venv first.
# A fresh machine needs python3 >= 3.10 and, for the compiled kernels, a C++ compiler.
#
# PYTHON  the interpreter that .venv is made with
# TORCH   which PyTorch .venv gets, as pip says it, for example TORCH=torch==2.13.0
# MASK2FORMER_BUILD  auto, cpu, cuda or none: which kernels are built, see setup.py

PYTHON ?= python3
TORCH ?= torch
VENV ?= .venv
LINTERS := ruff==0.17.5 clang-format==19.1.7

BIN := $(VENV)/bin
KERNELS := $(wildcard csrc/* csrc/*/*)

.PHONY: demo test lint format wheel clean

demo: $(VENV)/installed
	$(BIN)/mask2former demo

test: $(VENV)/installed-for-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(filter %.h %.cpp %.cu %.cuh,$(KERNELS))

format: $(VENV)/linters
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter %.h %.cpp %.cu %.cuh,$(KERNELS))

wheel: $(VENV)/torch
	rm -rf build  # what an earlier build left there would get into the wheel
	$(BIN)/pip wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info mask2former_ops/*.so mask2former_ops/_build_info.json

# Files of the environment that say what is in it. The package is installed editable, so that only
# a change of the kernels or of the build files calls for a new build.

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("%s is Python %d.%d, but 3.10 or newer is needed: make PYTHON=python3.12" % (sys.executable, *sys.version_info[:2]) if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

# Made anew when the choices are not those that the file notes.
CHOICES := $(strip $(TORCH) $(MASK2FORMER_BUILD))
ifneq ($(CHOICES),$(shell cat $(VENV)/torch 2>/dev/null))
.PHONY: $(VENV)/torch
endif
$(VENV)/torch: | $(BIN)/pip
	$(BIN)/pip install "$(TORCH)" setuptools wheel ninja
	@echo "$(CHOICES)" > $@

# Without build isolation, so that the build sees this torch and downloads no second one.
$(VENV)/installed: $(VENV)/torch $(KERNELS) setup.py pyproject.toml
	$(BIN)/pip install --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-for-test: $(VENV)/torch $(KERNELS) setup.py pyproject.toml
	$(BIN)/pip install --no-build-isolation --editable ".[test]"
	@touch $(VENV)/installed $@

$(VENV)/linters: Makefile | $(BIN)/pip
	$(BIN)/pip install $(LINTERS)
	@touch $@
