"""The notebook first_steps.ipynb runs from its first cell to its last, and shows what it says."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_steps.ipynb"


def read():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_it_is_kept_without_what_it_printed():
    for cell in read().cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
            compile(cell.source, str(NOTEBOOK), "exec")


@pytest.mark.slow
def test_a_kernel_runs_it():
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = read()
    nbclient.NotebookClient(notebook, timeout=400, kernel_name="python3").execute()
    said = "".join(out.get("text", "") for out in notebook.cells[-2].outputs)
    table = {}
    for line in said.splitlines():
        method, *parts = line.split()
        table[method] = dict(zip(parts[::2], map(float, parts[1::2]), strict=True))
    assert list(table) == ["zero-shot", "FLYP", "DiVE", "WiSE-FT", "VRF"]
    assert table["FLYP"]["digits"] > table["zero-shot"]["digits"] + 5  # what is gained
    assert table["FLYP"]["letters"] < table["zero-shot"]["letters"] - 5  # what is lost
    assert table["DiVE"]["letters"] > table["FLYP"]["letters"] + 5
    assert table["VRF"]["digits"] > table["zero-shot"]["digits"] + 5
