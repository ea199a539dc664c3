# `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TYPING := build/typing/lmk
MILVUS := .venv-milvus/.installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install milvus demo test test-all check format bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make .venv with the pinned versions and the project (editable)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("lmk needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,heif,milvus]'
	@touch $@

milvus: $(MILVUS)  ## make .venv-milvus, which holds the Milvus server that `make test-all` starts

$(MILVUS):
	$(PYTHON) -m venv .venv-milvus
	.venv-milvus/bin/pip install --quiet --disable-pip-version-check milvus==2.3.5
	@touch $@

demo: $(STAMP)  ## index the sample gallery, ask it, score it, write demo/report.html
	$(BIN)/lmk demo

test: $(STAMP)  ## run the tests that prove what the README promises
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

test-all: $(STAMP) $(MILVUS)  ## run all tests with coverage: long kill loops and a Milvus server too
	$(BIN)/coverage erase
	LMK_MILVUS_VENV=.venv-milvus $(BIN)/pytest -m "" -n $(WORKERS) --dist loadfile \
		--cov --cov-report=term --cov-fail-under=90

check: $(STAMP) $(TYPING)  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# mypy sees neither package_dir nor the editable import hook: give it the package as a symlink.
$(TYPING):
	mkdir -p $(@D)
	ln -sfn ../.. $@

format: $(STAMP)  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## run the benchmarks of docs/results.md (those on real photos need LMK_REAL_DATA)
	set -e; for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python $$b; done

clean:  ## remove everything that can be made again, .venv included
	rm -rf $(VENV) .venv-milvus build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
