"""For pytest alone. Chapters are tested from the shipped artefacts, each in a folder of its own below runs/test."""

import os
import shutil
from pathlib import Path

collect_ignore_glob = ["tests/card*.py"]  # helpers of test_card.py, which need a newer PyTorch than the package does


def pytest_runtest_setup(item):
    if item.path.suffix == ".ipynb":
        folder = Path(__file__).parent / "runs" / "test" / item.path.stem
        shutil.rmtree(folder, ignore_errors=True)
        os.environ["FINER1_RUNS"] = str(folder)
