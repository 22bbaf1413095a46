# `make demo` trains a small face GAN on drawn faces and shows what it learnt; `make test` runs every check.
# Needs Python 3.11 or newer and make; everything else goes into .venv.

PYTHON ?= python3
DATA ?=
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
MIEN := $(BIN)/mien
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable

# What `make demo` works on: drawn faces, DATA when it is a prepared store, else a store made of DATA.
NAME := $(notdir $(patsubst %/,%,$(DATA)))
STORE := $(if $(wildcard $(DATA)/manifest.json),$(DATA),demo/$(or $(NAME),faces))
RUN := demo/run$(if $(NAME),-$(NAME))

.PHONY: demo test lint docs clean help

help:
	@echo "make demo            draw toy faces, train on them, show samples (make demo DATA=DIR: on your own data)"
	@echo "make test            lint, types and the whole test suite"
	@echo "make lint            lint and types only"
	@echo "make docs            write docs/cli.md anew from the commands' own help"
	@echo "make clean           remove .venv, demo and caches"

# Stamps: what is installed stays installed until pyproject.toml or constraints.txt changes.
$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mien needs Python 3.11 or newer; $(PYTHON) is not. Name one that is: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "Installing into $(VENV); torch is large, so the first time takes a while."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(INSTALL) .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@$(INSTALL) '.[dev]'
	@touch $@

$(STORE)/manifest.json: | $(VENV)/.base
	$(if $(DATA),$(MIEN) data prepare "$(DATA)" --out $(STORE),$(MIEN) data synth --out $(STORE))

demo: $(STORE)/manifest.json | $(VENV)/.base
	$(MIEN) train $(STORE) --preset demo --run $(RUN) $$(grep -q '"Smiling"' $(STORE)/manifest.json || echo --set data.attributes=[])
	$(MIEN) sample $(RUN) --out $(RUN)/faces.png --grid
	$(MIEN) report $(RUN)
	$(MIEN) sample celeba64 --count 100 --out $(RUN)/samples/celeba64.png
	@echo
	@echo "Look at $(RUN)/faces.png: one row per combination of attributes, the same latents in each."
	@echo "One hundred faces that nobody picked out: $(RUN)/samples/mosaic.png; beside them celeba64.png, from the model that comes with mien."
	@echo "$(RUN)/report.html tells how the training went. More faces: $(MIEN) sample $(RUN) --out faces --where Smiling=1"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

docs: $(VENV)/.dev
	$(BIN)/python docs/make_cli.py

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
