"""The notebook runs from a copy of the checkout, and what it shows is what it says."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "first_steps.ipynb"


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def facts(notebook: nbformat.NotebookNode) -> tuple[dict[float, float], float]:
    """Return top-1 by keep ratio, and that of the exported model."""
    text = printed(notebook)
    rows = re.findall(r"^ +(\d\.\d) +\d+/\d+ .* (\d+\.\d)$", text, flags=re.MULTILINE)
    (exported,) = re.findall(r"top-1 in onnxruntime: (\S+) %", text)
    return {float(ratio): float(top1) for ratio, top1 in rows}, float(exported)


def check(notebook: nbformat.NotebookNode) -> None:
    top1, exported = facts(notebook)
    assert len(top1) == 7
    assert min(top1[ratio] for ratio in top1 if ratio >= 0.5) > 95
    assert exported > 95
    assert "Warning" not in printed(notebook)
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert len(pictures) == 2
    assert not {output.name for cell in notebook.cells for output in cell.get("outputs", []) if "name" in output} - {
        "stdout"
    }


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
