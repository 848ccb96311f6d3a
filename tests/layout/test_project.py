"""What stands around the code agrees with it: versions, supported Pythons, commands, workflows."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import robustft

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_is_of_this_version_and_licence():
    citation = read("CITATION.cff")
    assert citation["version"] == PROJECT["version"] == robustft.__version__
    assert citation["license"] == PROJECT["license"]


@pytest.mark.skipif(not WORKFLOWS, reason="an sdist has no workflows")
def test_the_workflow_tests_every_python_that_is_named():
    prefix = "Programming Language :: Python :: "
    named = [c.removeprefix(prefix) for c in PROJECT["classifiers"] if c.startswith(prefix)]
    assert read(".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"] == {
        "python": named
    }
    assert PROJECT["requires-python"] == f">={named[0]}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_the_makefile_has(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [s for job in read(path)["jobs"].values() for s in job.get("steps", ())]
    assert steps
    for step in steps:
        assert ("run" in step) != ("uses" in step), step
        if step.get("run", "").startswith("make "):
            assert set(re.findall(r"[a-z-]+", step["run"])[1:]) <= targets, step


def test_issue_forms_ask_for_something():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        if path.name != "config.yml":
            form = yaml.safe_load(path.read_text(encoding="utf-8"))
            assert {"name", "description", "body"} <= set(form)


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "robustft", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"robustft {robustft.__version__}\n"
