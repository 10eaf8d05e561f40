"""What a GPU would mind first, without one (`card.py`); in processes, as a device cannot be taken back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

IN_PYTHON = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
pytestmark = pytest.mark.skipif(not IN_PYTHON, reason="this PyTorch is too old for a device that is written in Python")
HERE = Path(__file__).parent
CHAPTERS = sorted(path.stem for path in (HERE.parent / "notebooks").glob("0*.ipynb"))
CASES = [(chapter, "l4") for chapter in CHAPTERS] + [("04_tapo", "t4"), ("04_tapo", "h100")]


def run(script, *arguments, **environment):
    environment |= {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=3600, env=os.environ | environment)


@pytest.mark.parametrize("gpu", ["l4", pytest.param("h100", marks=pytest.mark.slow)])
def test_training_on_the_card_gives_the_cpus_figures(gpu):
    """Checkpointing with lean decoding, and with plain matrices."""
    done = run("card_run.py", gpu)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    card, cpu = told["card"], told["cpu"]
    assert card["devices"] == ["card:0"] and cpu["devices"] == ["cpu"]
    assert card["figures"] == pytest.approx(cpu["figures"], rel=1e-3) and len(set(card["figures"])) == 8
    assert card["texts"] == cpu["texts"]
    assert told["refused"] == ["sum", "cat", "index", "where", "numpy"]  # CUDA takes masks and indices of the CPU


@pytest.mark.slow
@pytest.mark.parametrize("chapter, gpu", CASES)
def test_chapters_run_with_everything_on_the_card(chapter, gpu, tmp_path):
    done = run("card_chapter.py", chapter, gpu, FINER1_RUNS=str(tmp_path))
    last, devices = done.stdout.splitlines()[-1:], "set()" if chapter == "03_tapo_by_hand" else "{'card:0'}"
    told = done.stdout[-4000:] + done.stderr[-1000:]
    assert last == [f"{chapter} as {gpu}: 0 cells failed; policies on {devices}"], told
