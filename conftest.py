"""For pytest alone. Chapters are tested from the shipped artefacts, each in a folder of its own below runs/test."""

import os
import shutil
from pathlib import Path

import pytest
import torch

collect_ignore_glob = ["tests/card*.py"]  # helpers of test_card.py, which need a newer PyTorch than the package does


@pytest.fixture(autouse=True)
def number_of_threads():
    """Each test leaves as many threads as it found; after two, a forked process would wait for ever."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pytest_runtest_setup(item):
    if item.path.suffix == ".ipynb":
        folder = Path(__file__).parent / "runs" / "test" / item.path.stem
        shutil.rmtree(folder, ignore_errors=True)
        os.environ["FINER1_RUNS"] = str(folder)
