# Every target makes its environment first, from requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export PREFECT_HOME ?= $(CURDIR)/work/prefect
LOCAL := PREFECT_API_URL=http://127.0.0.1:4200/api
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test lint bench site server deploy worker repro clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(READY) ## one technique of each area on real digits, in a few minutes
	@$(BIN)/python -m flows.demo

test: $(READY) ## the fast tests
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(READY) ## formatting, lint and types
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyright

bench: $(READY) ## what the instrument itself costs: its loop beside a network, its steps beside diffusers
	@$(BIN)/python -m flows.bench

site: $(READY) ## render the site into public/ from catalog and results
	@$(BIN)/python -m flows.publish

repro: $(READY) ## rebuild every committed result
	@$(BIN)/dvc repro

server: $(READY) ## the Prefect server and its UI, on http://127.0.0.1:4200
	@$(BIN)/prefect server start

deploy: $(READY) ## put the flows, with their forms, on the running server
	@$(LOCAL) $(BIN)/prefect work-pool create cpu --type process --overwrite
	@$(LOCAL) $(BIN)/prefect --no-prompt deploy --all

worker: $(READY) ## a worker that carries out what the server is asked for
	@$(LOCAL) ATLAS_HOME=$(CURDIR) PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/prefect worker start --pool cpu

clean: ## forget intermediate files; results stay
	rm -rf work public

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@mkdir -p work/prefect
	@touch $(READY)
