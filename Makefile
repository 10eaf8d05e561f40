# Two commands: `make run` (the whole story on a CPU) and `make test`. Both install what they need into .venv.
PYTHON ?= python3
BIN := .venv/bin
CHAPTERS := $(sort $(wildcard notebooks/[0-9]*.ipynb))
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

.PHONY: run test install study
.DEFAULT_GOAL := run

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[notebooks,test,trl]"
	touch $@

# Every chapter in order; executed copies, plots and results land in runs/cpu.
run: install
	mkdir -p runs/cpu/notebooks
	for chapter in $(CHAPTERS); do echo "== $$chapter"; \
	  (cd notebooks && ../$(BIN)/jupyter nbconvert --to notebook --execute --log-level=WARN \
	    --output-dir ../runs/cpu/notebooks $$(basename $$chapter)) || exit 1; done
	$(BIN)/python -m finer1_lite.story --report runs/cpu

test: install
	$(BIN)/python -m pytest -q
	cd notebooks && ../$(BIN)/python -m pytest -q --nbmake --nbmake-timeout=900 [0-9]*.ipynb

# The committed results: three seeds of the whole story, without notebooks.
study: install
	$(BIN)/python -m finer1_lite.story --seeds 0 1 2 --out results
