# Two commands for a newcomer: `make demo` and `make test`. Both set up .venv on their own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint types imports docs pretrained clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Corpus and meta-model of the measured rows in experiments/corpus, in a few minutes.
CORPUS := autometa/pretrained/corpus
pretrained: $(STAMP)
	rm -rf build/births
	$(BIN)/python -m autometa.experiment collect experiments/corpus/core.toml $(CORPUS) --min-coverage 0.95
	$(BIN)/python -m autometa.experiment collect experiments/corpus/small_rows.toml $(CORPUS)
	$(BIN)/python -m autometa.experiment collect experiments/corpus/large_rows.toml $(CORPUS)
	$(BIN)/python -m autometa.experiment collect experiments/corpus/births.toml build/births
	$(BIN)/python -m autometa.experiment join $(CORPUS) build/births $(CORPUS)
	OMP_NUM_THREADS=1 $(BIN)/autometa meta-train $(CORPUS) -o autometa/pretrained/meta_model

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
