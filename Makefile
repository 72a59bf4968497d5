.PHONY: help sync check format type test slow build smoke bench ci

help:    ## show this list
	@grep -E '^[a-z]+: +## ' $(MAKEFILE_LIST) | sed 's/: *##/\t/' | expand -t 10

sync:    ## install what pyproject.toml pins into .venv
	uv sync

check:   ## lint, check the formatting, and that every resolved package is pinned
	uv run ruff check .
	uv run ruff format --check .
	uv run scripts/pin.py --check

format:  ## format and apply the linter's safe fixes
	uv run ruff check --fix .
	uv run ruff format .

type:    ## check types
	uv run mypy

test:    ## the tests that every change runs
	uv run pytest

slow:    ## the tests that take minutes
	uv run pytest -m slow

build:   ## source distribution and wheel in dist/
	rm -rf dist
	uv build

smoke:   ## install the wheel in an empty environment and train with it from another folder
	uv run pytest -m slow tests/test_wheel.py

bench:   ## every benchmark; the records go to benchmarks/
	@set -e; for what in data latency training kernels; do echo "== $$what"; uv run mode-bench $$what --record; done
	@set -e; for script in $(filter-out %tune_kernels.py %latency.py,$(wildcard benchmarks/[a-z]*.py)); do \
		echo "== $$script"; uv run $$script --record; done

ci:      ## all that a change must pass, as on a bare machine
	.ci/run
