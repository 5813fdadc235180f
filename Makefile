.PHONY: style quality test conformance

style:
	ruff format .
	ruff check --fix .

quality:
	ruff format --check .
	ruff check .
	ty check

test:
	pytest -n 2 --dist worksteal -m "not slow and not gpu and not online"

# against the peers' own packages, in an environment of their own
conformance:
	python3 -m venv .conformance
	PIP_CONSTRAINT=.ci/constraints.txt .conformance/bin/pip install -q torch
	PIP_CONSTRAINT=.ci/constraints.txt .conformance/bin/pip install -q . pytest pytest-timeout -r tests/conformance/requirements.txt
	.conformance/bin/pip install -q --no-deps -r tests/conformance/requirements-alone.txt
	.conformance/bin/python -m pytest tests/conformance tests/conversion/test_scopes_against_saelens.py
