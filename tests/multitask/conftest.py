"""What every test of the upper storey runs with."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tiny_data
from csv_runs import write_data
from rsn2.bench import peaks


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors as small as these lose time to a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small_machine() -> Iterator[None]:
    """A benchmark's peaks are those of a small copy and a small product."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peaks, "_COPIED_BYTES", 1 << 20)
        patch.setattr(peaks, "_SIDE", {"cpu": 64})
        yield


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The configuration of a small run, its data beside it."""
    return write_data(tmp_path)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all seven sources, for reading only."""
    return tiny_data.write_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may damage."""
    return shutil.copytree(folder, tmp_path / "own")
