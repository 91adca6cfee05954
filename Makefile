# `make` alone lists the targets. Python 3.11 to 3.13, git and make are all that a machine needs to have.
# Another interpreter: make PYTHON=python3.12 lab.   More test workers: make WORKERS=8 test.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
COURSE := WORKERS=$(WORKERS) $(PYTHON) install.py

.DEFAULT_GOAL := help
.PHONY: help python setup lab test test-fast lint format course notebooks bench claims clean

help:  ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1@/p' $(MAKEFILE_LIST) | awk -F@ '{printf "make %-10s  %s\n", $$1, $$2}'

python:
	@command -v $(PYTHON) >/dev/null || { echo "Set-up: Python 3.11-3.13 is needed; there is no $(PYTHON) on this machine."; exit 1; }

setup: python  ## make .venv with the pinned versions (every other target does this first)
	@$(COURSE)

lab: python  ## open JupyterLab on the first lesson (this machine only, with its token)
	@$(COURSE) lab

test: python  ## every check: style, tests, all notebooks from top to bottom
	@$(COURSE) test

test-fast: python  ## the same without running the notebooks
	@$(COURSE) test-fast

lint: python  ## check style and format only
	@$(COURSE) lint

format: setup  ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

course: setup  ## run all notebooks and write an HTML gallery to build/course
	$(BIN)/python -m course_lib.lab.gallery

notebooks: setup  ## run all notebooks in place, ready to commit
	$(BIN)/python -m course_lib.lab.gallery --in-place

bench: setup  ## compare the library with its peers
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[bench]'
	$(BIN)/python -m course_lib.bench

claims: setup  ## run every experiment again and write data/claims.json
	$(BIN)/python -m course_lib.claims

clean:  ## remove what the other targets wrote, except .venv
	rm -rf build .pytest_cache .ruff_cache .hypothesis course_lib.egg-info
	find course_lib tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
