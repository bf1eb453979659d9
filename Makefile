# Every target makes its environment first, from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export PREFECT_HOME ?= $(CURDIR)/work/prefect
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test slow lint bench site up down status doctor repro clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(READY) ## one technique of each area on real digits, in a few minutes
	@$(BIN)/python -m flows.demo

test: $(READY) ## the fast tests
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

slow: $(READY) ## the slow tests: servers, workers and a browser for real
	@$(BIN)/python -m pytest -q --slow -m slow

lint: $(READY) ## formatting, lint and types
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyright

bench: $(READY) ## what the instrument itself costs: its loop beside a network, its steps beside diffusers
	@$(BIN)/python -m flows.bench

site: $(READY) ## render the site into public/ from catalog and results
	@$(BIN)/python -m flows.publish

repro: $(READY) ## rebuild every committed result
	@$(BIN)/dvc repro

up: $(READY) ## start everything on this machine: Prefect, MLflow, workers, the site
	@$(BIN)/python -m flows.operate up

down: $(READY) ## stop it
	@$(BIN)/python -m flows.operate down

status: $(READY) ## what runs, where it answers, and where its log lies
	@$(BIN)/python -m flows.operate status

doctor: $(READY) ## check every part, and say what to do
	@$(BIN)/python -m flows.operate doctor

clean: ## forget intermediate files; results stay
	rm -rf work public

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@mkdir -p work/prefect
	@touch $(READY)
