"""The notebook runs from a copy of the checkout, and what it shows is what it says."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "first_steps.ipynb"


def check(notebook: nbformat.NotebookNode) -> None:
    """Look at top-1 by keep ratio and of the exported model, at the pictures, and that nobody warned."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    rows = re.findall(r"(?m)^ +(\d\.\d) +\d+/\d+ .* (\d+\.\d)$", text)
    assert [ratio for ratio, _ in rows] == ["1.0", "0.9", "0.8", "0.7", "0.6", "0.5", "0.4"]
    assert min(float(top1) for ratio, top1 in rows if float(ratio) >= 0.5) > 95
    (exported,) = re.findall(r"top-1 in onnxruntime: (\S+) %", text)
    assert float(exported) > 95
    assert [output.name for output in outputs if output.output_type == "stream" and output.name != "stdout"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


def test_the_committed_outputs_are_whole_small_and_of_no_machine() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < 400_000
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)
    check(nbformat.reads(text, as_version=4))


@pytest.mark.slow
def test_the_notebook_runs_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("checkpoints/quickstart-pruned", "checkpoints/quickstart-dense", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(tmp_path / "notebooks" / NOTEBOOK.name, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
    check(notebook)
    assert (tmp_path / "results" / "first-steps" / "model.onnx").exists()
