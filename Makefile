# `make run` (the whole story on a CPU) and `make test`. Both install what they need into .venv.
PYTHON ?= python3
BIN := .venv/bin
CHAPTERS := $(sort $(wildcard notebooks/[0-9]*.ipynb))
# Two processes with a thread each are faster than one with two; two with two are far slower.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --dist loadfile --no-loadscope-reorder
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

.PHONY: run test test-slow install study evidence owner
.DEFAULT_GOAL := run

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[notebooks,teacher,test,trl]"
	touch $@

# Every chapter in order; executed copies, plots and results land in runs/cpu.
run: install
	mkdir -p runs/cpu/notebooks
	for chapter in $(CHAPTERS); do echo "== $$chapter"; \
	  (cd notebooks && ../$(BIN)/jupyter nbconvert --to notebook --execute --log-level=WARN \
	    --output-dir ../runs/cpu/notebooks $$(basename $$chapter)) || exit 1; done
	$(BIN)/python -m finer1_lite.evaluate.statistics runs/cpu/results.csv

# Unit tests, doctests, and every chapter with small values, in a folder of its own.
test: install
	$(PYTEST) --nbmake --nbmake-timeout=1200 notebooks tests finer1_lite

# What takes longer: twenty kills, all chapters on a pretended GPU, pre-training, the 3B's real sizes.
test-slow: install
	$(PYTEST) -m slow tests

# A fork: its owner's name in pyproject.toml, in the chapters' badges and pip lines, and on cards.
owner:
	sed -i -E 's#(github(\.com)?)/[A-Za-z0-9-]+/finer1_lite#\1/$(OWNER)/finer1_lite#g' pyproject.toml README.md \
	  finer1_lite/card.md notebooks/*.ipynb

# The committed story: its seeds without notebooks, and the shipped artefacts from seed 0.
study: install
	$(BIN)/python -m studies.story
	mkdir -p finer1_lite/birds/assets/reference
	cp -r runs/study/seed0/chains.jsonl runs/study/seed0/sft_answers runs/study/seed0/cot_sft runs/study/seed0/dapo \
	  runs/study/seed0/tapo finer1_lite/birds/assets/reference/

# All of the evidence; a killed run goes on where it was.
evidence: study
	for study in baselines ablations teachers why transfer page; do $(BIN)/python -m studies.$$study || exit 1; done
