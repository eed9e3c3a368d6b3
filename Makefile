# Each target sets up what it needs: a virtual environment in .venv, the native build in build/release; afterwards only
# what changed is brought up to date. For instance:
#
#   make demo PYTHON=python3.12 CXX=clang++ CMAKE_ARGS=-DFASA_CUDA=OFF

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RELEASE := build/release
SANITIZED := build/sanitize
NATIVE_TESTS := tests/native/fasa_tests
BENCH_MODEL ?= build/models/llama-3.2-1b-Q4_K_M.gguf
BENCH_PEER := build/peer-venv/bin/python

# The build requirements of pyproject.toml sit in .venv: in an isolated environment every build would start anew.
BUILD_REQUIRES := "scikit-build-core>=0.10" "cmake>=3.22" ninja
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Run beside the sources, so that what is tested is the installed package.
PYTEST := cd build && $(abspath $(BIN)/pytest) -c $(abspath pyproject.toml) $(abspath tests/python)
INSTALL_PACKAGE := $(PIP_INSTALL) --no-build-isolation --config-settings=build-dir=$(RELEASE)

PACKAGE_SOURCES := pyproject.toml README.md LICENSE CMakeLists.txt \
  $(shell find native fasa_py -type f -not -path '*/__pycache__/*')
# fasa.h is laid out in columns, by hand.
CXX_FILES := $(filter-out %/fasa.h,$(foreach kind,cpp h cu cuh,$(shell find native tests bench -name '*.$(kind)')))
PYTHON_FILES := fasa_py tests tools bench .ci

export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help demo test test-cuda bench lint format sanitize build clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-10s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/installed  ## calibrate the embedded model; full attention and FASA side by side on a long text
	$(BIN)/python -I -m fasa_py.demo

test: $(VENV)/installed-test $(RELEASE)/$(NATIVE_TESTS)  ## run all tests, the native ones included
	export FASA_NATIVE_TESTS=$(abspath $(RELEASE)/$(NATIVE_TESTS)); $(PYTEST) $(PYTEST_ARGS)

test-cuda: $(VENV)/installed-test  ## compile the CUDA backend, and run its tests on the CPU: for machines without a GPU
	tests/cuda_on_cpu/run.sh

bench: $(VENV)/installed $(BENCH_PEER) $(BENCH_MODEL)  ## compare with llama-cpp-python on the same model file
	FASA_LIBRARY=$(abspath $(RELEASE)/libfasa.so) $(BIN)/python bench/side_by_side.py $(BENCH_MODEL) $(BENCH_ARGS)

lint: $(VENV)/installed-dev  ## check formatting, style, types and the direction of includes
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/mypy
	$(BIN)/python .ci/check_includes.py

format: $(VENV)/installed-dev  ## format all sources
	$(BIN)/clang-format -i $(CXX_FILES)
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)

# Python itself leaks at exit, so that leaks are looked for in the native tests only. libstdc++ is preloaded because
# the address sanitizer has to find it before the first exception.
sanitize: $(VENV)/installed-test  ## run the tests under the address and undefined-behaviour sanitizers
	cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_CXX_COMPILER=$(CXX) -DFASA_SANITIZE=address,undefined -DFASA_TESTS=ON
	cmake --build $(SANITIZED) --target fasa fasa_tests
	$(SANITIZED)/$(NATIVE_TESTS)
	export LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)"; \
	  export ASAN_OPTIONS=detect_leaks=0 FASA_LIBRARY=$(abspath $(SANITIZED)/libfasa.so); $(PYTEST) -m "not slow and not alone" -n auto $(PYTEST_ARGS)

build: $(VENV)/installed  ## build the engine and install the package into .venv

clean:  ## remove the builds and the virtual environment
	rm -rf $(VENV) build dist

$(VENV)/created:
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) $(BUILD_REQUIRES)
	touch $@

$(VENV)/installed: $(VENV)/created $(PACKAGE_SOURCES)
	$(INSTALL_PACKAGE) .
	touch $@

$(VENV)/installed-%: $(VENV)/created $(PACKAGE_SOURCES)
	$(INSTALL_PACKAGE) ".[$*]"
	touch $@

$(RELEASE)/$(NATIVE_TESTS): $(VENV)/installed-test $(shell find tests/native -type f)
	cmake -S . -B $(RELEASE) -DFASA_TESTS=ON
	cmake --build $(RELEASE) --target fasa fasa_tests
	touch $@

$(BENCH_PEER):
	$(BIN)/python bench/peer.py

build/models/%-Q4_K_M.gguf: | $(VENV)/installed
	$(BIN)/python bench/make_model.py $* Q4_K_M $@
