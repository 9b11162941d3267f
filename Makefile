# The environment lives in .venv; every target needs only Python 3.11+, make and a compiler.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: install demo test lint bench ui
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## the environment, .venv

# torchvision has no CPU build for this torch, and Puma does not use it; loader tests see it in a folder of its own.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet torch==2.13.0
	$(RUN) -m pip install --quiet --editable '.[dev,serve-ray,lance,faiss]'
	$(RUN) -m pip install --quiet --no-deps --upgrade --target $(VENV)/torchvision torchvision==0.28.0
	@touch $@

demo: install  ## a trained student, an index and a report from made pictures, in minutes
	$(RUN) pipeline/run.py --recipe demo

test: install  ## the whole test suite
	$(RUN) -m pytest

lint: install  ## style, format, which room imports which, and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(RUN) -m mypy

bench: install  ## side-by-side measurements, as ratios
	$(RUN) -m tests.bench all

ui: install  ## the MLflow page of all runs, on http://127.0.0.1:5000
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh mlflow/ui.sh
