# make demo: segment a rendered scene.  make test: run the tests, make test-all the slow ones too.
# All set up .venv first.
# A fresh machine needs python3 >= 3.10 and, for the compiled kernels, a C++ compiler.
# make test-sanitize: the op tests on kernels built with AddressSanitizer and UBSan.
# make wheel, then make test-wheel: the op tests on that wheel, in an environment of its own.
# make cuda-report: registers and spills of the CUDA kernels; needs nvcc, but no GPU.
# make gpu-check: the CUDA kernels built, tested and timed on a GPU, with the torch of PYTHON.
#
# PYTHON  the interpreter that .venv, or the environment of test-wheel, is made with
# TORCH   which PyTorch it gets, as pip says it, for example TORCH=torch==2.13.0
# WITH, TESTS  what test-wheel installs besides, and which tests it runs
# WHEEL_VENV  the environment of test-wheel; one that is there is kept
# MASK2FORMER_BUILD  auto, cpu, cuda or none: which kernels are built, see setup.py

PYTHON ?= python3
TORCH ?= torch
TESTS ?= tests/ops
VENV ?= .venv
WHEEL_VENV ?= build/test-wheel/env
LINTERS := ruff==0.17.5 clang-format==19.1.7 basedpyright==1.40.2

# One test process per core, at most 8 because of memory, each with one thread.
# PYTEST_ARGS="-n 0" runs all in one process.
PYTEST := -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal --durations 15
test test-all test-sanitize test-wheel: export OMP_NUM_THREADS := 1

# GCC's sanitizers. Python's own flags bring -fwrapv, which would hide sums that overflow.
SANITIZERS := -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all \
	-fno-wrapv -fno-omit-frame-pointer -O1 -g
# Python itself has none, so they are loaded first. What Python still holds when it ends is no leak
# of ours.
SANITIZED := MASK2FORMER_CXXFLAGS="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)"
# pytest must not hold back what a sanitizer says before it ends the process.
SANITIZED_TESTS = $(SANITIZED) $(abspath $(BIN))/python $(PYTEST) --capture=sys $(PYTEST_ARGS)

BIN := $(VENV)/bin
WHEEL = $(or $(wildcard dist/*.whl),$(error dist has no wheel yet: make wheel))
KERNELS := $(wildcard csrc/* csrc/*/* csrc/*/*/*)
EMULATION := $(wildcard $(addprefix tests/ops/emulation/,* include/*))
CXX_FILES = $(filter %.h %.inl %.cpp %.cu %.cuh,$(KERNELS) $(EMULATION))

.PHONY: demo test test-all test-sanitize test-wheel cuda-report gpu-check lint format wheel clean

demo: $(VENV)/installed
	$(BIN)/mask2former demo

test: $(VENV)/installed-for-test
	$(BIN)/python $(PYTEST) -m "not slow" $(PYTEST_ARGS)

test-all: $(VENV)/installed-for-test
	$(BIN)/python $(PYTEST) $(PYTEST_ARGS)

# The tests run beside the library they are for, away from the package in the source tree; the CUDA
# kernels that they emulate are built with the sanitizers too. What torch.compile's default backend
# compiles is not ours, and its compiler need not be checked.
test-sanitize: DIR = build/sanitized/lib
test-sanitize: $(VENV)/installed-for-test
	rm -rf build/sanitized
	MASK2FORMER_BUILD=cpu MASK2FORMER_CXXFLAGS="$(SANITIZERS)" LDFLAGS="$(SANITIZERS)" \
		$(BIN)/python setup.py --quiet build --build-base build/sanitized --build-lib $(DIR)
	cp -r csrc tests pyproject.toml $(DIR)
	cd $(DIR) && $(SANITIZED_TESTS) tests/ops/sanitizer_proof.py
	cd $(DIR) && $(SANITIZED_TESTS) tests/ops -k "not inductor"

# The emulation of CUDA, which has no kernels to run there, is not tested again.
test-wheel: DIR = build/test-wheel
test-wheel: ENV_BIN = $(abspath $(WHEEL_VENV))/bin
test-wheel:
	rm -rf $(DIR)
	mkdir -p $(DIR)
	cp -r tests pyproject.toml $(DIR)
	test -d $(WHEEL_VENV) || $(PYTHON) -m venv $(WHEEL_VENV)
	$(ENV_BIN)/pip install "$(TORCH)" "$(WHEEL)[test]" torch-abi-audit $(WITH)
	cd $(DIR) && $(ENV_BIN)/python -c "import mask2former_ops._C"
	$(ENV_BIN)/torch-abi-audit --check both $(ENV_BIN)/../lib/python*/site-packages/mask2former_ops/_C.abi3.so
	cd $(DIR) && $(ENV_BIN)/python $(PYTEST) --ignore tests/ops/test_emulation.py $(PYTEST_ARGS) $(TESTS)
	rm -rf $(DIR)/env  # a torch with CUDA has 5 GB

cuda-report: $(VENV)/torch
	$(BIN)/python -m benchmarks.cuda_report $(GPUS)

# With the torch that is there, in a folder of its own.
gpu-check:
	$(PYTHON) tests/ops/gpu_check.py

# The type checker reads the installed torch and extras too.
lint: $(VENV)/linters $(VENV)/installed-for-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/linters
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

wheel: $(VENV)/torch
	rm -rf build dist  # what an earlier build left there would get into the wheel
	$(BIN)/pip wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info mask2former_ops/*.so mask2former_ops/_build_info.json

# Files of the environment that say what is in it. The package is installed editable, so that only
# a change of the kernels or of the build files calls for a new build.

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("%s is Python %d.%d, but 3.10 or newer is needed: make PYTHON=python3.12" % (sys.executable, *sys.version_info[:2]) if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)

# Made again when the choices differ from the ones noted in the file.
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
