# Every verb a user or contributor needs. `make demo` and `make test` work on a fresh clone with Python 3.10+ and a C++17 compiler.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PYTHON := $(VENV)/bin/python
BASE_PYTHON ?= python3
PIP := $(PYTHON) -m pip --disable-pip-version-check

NATIVE_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.PHONY: help demo test style format sanitize bench clean
help:  ## List the verbs.
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The build tools come from PyPI; they stay in the environment, so that a change of the C++ sources
# rebuilds what changed and nothing else.
$(VENV)/tools.stamp: pyproject.toml constraints.txt
	test -x $(PYTHON) || $(BASE_PYTHON) -m venv $(VENV)
	$(PIP) install --quiet cmake ninja 'scikit-build-core>=0.11' 'pybind11>=3.0'
	touch $@

$(VENV)/installed.stamp: $(VENV)/tools.stamp CMakeLists.txt $(NATIVE_SOURCES)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP) install --quiet -c constraints.txt \
	  --no-build-isolation --editable '.[test,demo,info,bench]'
	touch $@

# What an extra of the installed package asks for; installing '.[style]' would build the module again.
extra = $$($(PYTHON) -c 'from importlib.metadata import requires; \
  rows = [row.split(";") for row in requires("crossmedia_fast")]; \
  print(*(name.strip() for name, *rest in rows if rest and rest[0].split()[-1][1:-1] == "$(1)"))')

$(VENV)/style.stamp: $(VENV)/installed.stamp
	$(PIP) install --quiet -c constraints.txt $(call extra,style)
	touch $@

demo: $(VENV)/installed.stamp  ## Train the CNN and the GANs on real digits; fused beside reference. ARGS="--gan mlp" adds flags.
	$(PYTHON) -m crossmedia_fast demo $(ARGS)

# Processes side by side, whose waiting threads leave the cores to the others.
test: $(VENV)/installed.stamp  ## Run the tests.
	OMP_WAIT_POLICY=passive $(PYTHON) -m pytest --numprocesses=auto --maxprocesses=8 \
	  --dist=worksteal $(ARGS)

style: $(VENV)/style.stamp  ## Check formatting, lint and types.
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(NATIVE_SOURCES)

format: $(VENV)/style.stamp  ## Format everything.
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(VENV)/bin/clang-format -i $(NATIVE_SOURCES)

clean:  ## Remove the environment and every build.
	rm -rf $(VENV) build dist crossmedia_fast/_native*

-include csrc/native.mk
-include csrc/gpu.mk
-include benchmarks/bench.mk
-include docs/docs.mk
-include packaging/wheel.mk
