# Everything a person or a machine runs here. `make` alone prints this list.
#
# torch: on Linux the plain wheel brings CUDA (several GB). `make setup` therefore installs the CPU build and says so.
#   TORCH=cpu        the CPU build (default): from the indexes pip is set up with, else from TORCH_INDEX
#   TORCH=default    whatever the indexes pip is set up with call torch (CUDA on Linux)
#   TORCH=<url>      from that wheel index, for example https://download.pytorch.org/whl/cu128

PYTHON ?= python3
TORCH ?= cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
VENV := .venv
BIN := $(VENV)/bin
VIDEOS ?=
QUERY ?=
# for `make bench`: labelled clips, and five runs of the recipe `nano` with real_steps and fold 0 to 4
LABELLED ?= ../shared/data/labelled
FOLDS ?=

EXTRAS_demo := search
EXTRAS_test := search,hf,train,ray,plot,docs,dev
EXTRAS_bench := search,hf,train,ray,plot,docs,dev,bench

BENCHMARKS := $(filter-out tables actions,$(patsubst benchmarks/%.py,%,$(sort $(wildcard benchmarks/*.py))))

TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint bench docs

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(VENV)/.ready-test  ## .venv with the package, editable, and what tests and docs need

demo: $(VENV)/.ready-demo  ## search a folder: make demo [VIDEOS=folder] [QUERY="words"]; without VIDEOS a rendered library
	$(BIN)/elastivid demo $(if $(VIDEOS),--videos "$(VIDEOS)") $(if $(QUERY),--query "$(QUERY)")

test: setup lint docs  ## everything: lint, types, docs, all tests with the examples
	$(BIN)/pytest

check: setup lint  ## under a minute: lint, types, structure, fast tests
	$(BIN)/pytest tests/test_structure.py tests/core tests/select tests/models -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready-bench  ## measurements side by side with peers; writes tables under docs/benchmarks
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done
ifeq ($(FOLDS),)
	@echo "== actions: left out, it needs LABELLED=folder and FOLDS=\"five runs of the recipe nano\""
else
	@echo "== actions"; $(BIN)/python benchmarks/actions.py --labelled "$(LABELLED)" --folds $(FOLDS)
endif

docs: setup  ## the documentation as a site under site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.torch-$(TORCH_VERSION): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "elastivid needs Python 3.11 or newer, got $$($(PYTHON) --version); run: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@set -e; pip="$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt"; \
	case "$(TORCH)-$$(uname -s)" in \
	  cpu-Linux) echo "installing the CPU build of torch; for another: make setup TORCH=default or TORCH=<wheel index>"; \
	    $$pip "torch==$(TORCH_VERSION)+cpu" 2>/dev/null || $$pip "torch==$(TORCH_VERSION)+cpu" --extra-index-url $(TORCH_INDEX);; \
	  cpu-*|default-*) echo "installing torch as pip finds it"; $$pip "torch==$(TORCH_VERSION)";; \
	  *) echo "installing torch from $(TORCH)"; $$pip "torch==$(TORCH_VERSION)" --extra-index-url "$(TORCH)";; \
	esac
	@touch $@

$(VENV)/.ready-%: pyproject.toml constraints.txt | $(VENV)/.torch-$(TORCH_VERSION)
	@echo "installing elastivid[$(EXTRAS_$*)] into $(VENV); the first time takes a few minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS_$*)]"
	@touch $@
