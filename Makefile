# make setup | run | test | heavy | slow | bench | notebooks | report
PYTHON ?= python3
VENV   ?= .venv
NAME   ?= quickstart
BIN    := $(VENV)/bin

.PHONY: setup run test heavy slow bench notebooks report lint

setup: $(VENV)/ready

$(VENV)/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version.split()[0] + ". Say which with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt -e .
	$(BIN)/python -m utils.llm fetch
	@touch $@

run: setup
	$(BIN)/python -m utils.course run --name $(NAME) --resume

# Two files of tests at a time, one thread each: torch's threads would wait for one another.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

heavy: setup
	$(BIN)/python -m pytest -m heavy

slow: setup
	$(BIN)/python -m pytest -m slow

bench: setup
	@ls tests/benchmarks/*.py | sed 's|^|$(BIN)/python |'

notebooks: setup
	$(BIN)/python -m utils.course run --name $(NAME) --resume
	$(BIN)/python -m utils.course outputs --name $(NAME)

report: setup
	$(BIN)/python -m utils.course report --name $(NAME) $(if $(NOTEBOOKS),--notebooks $(NOTEBOOKS))

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
