# Two commands: `make run` (the whole story on a CPU) and `make test`. Both install what they need into .venv.
PYTHON ?= python3
BIN := .venv/bin
CHAPTERS := $(sort $(wildcard notebooks/[0-9]*.ipynb))
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

.PHONY: run test install study evidence
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
	$(BIN)/python -m finer1_lite.story --report runs/cpu

# Each chapter starts from the shipped artefacts, in a folder of its own, so that your results stay as they are.
test: install
	$(BIN)/python -m pytest -q
	rm -rf runs/test
	for chapter in $(notdir $(CHAPTERS)); do \
	  (cd notebooks && FINER1_RUNS=../runs/test/$$chapter ../$(BIN)/python -m pytest -q --nbmake --nbmake-timeout=1200 \
	    $$chapter) || exit 1; done

# The committed results: five seeds of the whole story without notebooks, and the shipped artefacts from seed 0.
study: install
	$(BIN)/python -m finer1_lite.story --seeds 0 1 2 3 4 --out results
	mkdir -p finer1_lite/birds/assets/reference
	cp -r runs/study/seed0/chains.jsonl runs/study/seed0/sft_answers runs/study/seed0/cot_sft runs/study/seed0/dapo \
	  runs/study/seed0/tapo finer1_lite/birds/assets/reference/

# What goes on from the study's folder: ablations, then the other studies. About three hours on two cores; a killed
# run goes on where it was.
evidence: install
	for study in ablations teachers baselines why transfer; do $(BIN)/python -m finer1_lite.evidence.$$study || exit 1; done
	$(BIN)/python -m finer1_lite.evidence.page
