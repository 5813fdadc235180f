.PHONY: style quality test

style:
	ruff format .
	ruff check --fix .

quality:
	ruff format --check .
	ruff check .
	ty check

test:
	pytest -n 2 -m "not slow and not gpu and not online"
