"""What the layout promises, held by a test: who imports whom, what stays unimported, where `bandit` comes from."""

import subprocess
import sys
from pathlib import Path

import pytest

import bandit

ROOT = Path(__file__).parents[1]


def test_bandit_is_ours_and_not_the_linter_of_that_name():
    assert Path(bandit.__file__) == ROOT / "bandit" / "__init__.py"


def test_import_contracts_hold():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("bandit.decide", ("redis", "fastapi", "aiohttp", "httpx", "pydantic", "asyncio")),
        ("feedback.learn", ("redis", "fastapi", "aiohttp", "httpx")),
        (
            "simulations.replay",
            ("redis", "fastapi", "aiohttp", "httpx", "pareto_bandit", "joblib", "sklearn"),
        ),
        ("service.app", ("redis", "httpx", "valkey", "pareto_bandit")),
        ("service.__main__", ("httpx", "valkey", "pareto_bandit", "matplotlib")),
    ],
)
def test_importing_a_part_brings_in_no_more_than_it_needs(module, unwanted):
    code = f"import sys, {module}; print([m for m in {unwanted!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
