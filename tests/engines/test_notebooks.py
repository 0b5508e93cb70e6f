"""Notebooks in a real kernel."""

from pathlib import Path

import pytest

nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]


def execute(notebook, folder, **options):
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}, **options)
    client.execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_progress_is_one_output_for_each_run(tmp_path):
    notebook = nbformat.read(EXAMPLES / "4_a_teacher_with_a_known_score.ipynb", as_version=4)
    outputs = execute(notebook, tmp_path)
    bars = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(bars) == 3 and all("</progress> done" in html and "data:image/jpeg" in html for html in bars)
    errors = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    unread = "negative_prompt: has no effect here, distill=sds reads no negative prompt"
    assert set("".join(errors).splitlines()) == {unread}  # no bars of tqdm beside it


def test_an_error_is_one_line(tmp_path):
    source = 'import nfsd3d\nnfsd3d.generate("a red cube", **{"train.steps": -1})'
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    *_, output = execute(notebook, tmp_path, allow_errors=True)
    assert output.output_type == "error" and output.ename == "InputError"
    assert output.traceback == ["InputError: train.steps=-1: must be greater than 0"]


def test_all_notebooks_are_stored_without_outputs():
    for path in EXAMPLES.glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        assert not [cell for cell in cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)], path
