"""What the README and the docs say is true: the example runs, and the figures are those of the results files."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    scope: dict[str, object] = {}
    exec(example, scope)
    accuracy = (scope["logits"].argmax(1) == scope["data"]["digits"][1]).float().mean()  # type: ignore[attr-defined, index]
    assert accuracy > 0.95 and (tmp_path / "net.safetensors").exists()


def test_the_example_of_a_mixed_batch_runs() -> None:
    command = [sys.executable, ROOT / "examples/mixed_batch.py", "--tasks", "7", "--samples", "20", "--features", "50"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0 and "7 tasks, 20 samples" in done.stdout, done.stdout + done.stderr


def test_tables_are_those_of_the_results_files() -> None:
    check = [sys.executable, ROOT / "benchmarks/tables.py", "--check"]
    done = subprocess.run(check, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_of_public_names_is_that_of_the_docstrings() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs/write_api.py", "--check"], check=False)
    assert done.returncode == 0, "python docs/write_api.py writes it anew"


def test_every_marked_table_is_written_from_a_results_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    written = {(name, marker) for name, marker, _ in importlib.import_module("tables").TABLES}
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    marked = [(page, marker) for page in pages for marker in re.findall("<!-- end of (.*?) -->", page.read_text())]
    assert {(str(page.relative_to(ROOT)), marker) for page, marker in marked} == written
    assert len(marked) == len(written)


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
    for path in re.findall(
        r"`((?:tests|docs|benchmarks|examples|results|csrc|rsn2_kernels|python)/[\w./-]+)`", page.read_text()
    ):
        assert (ROOT / path).exists(), path
