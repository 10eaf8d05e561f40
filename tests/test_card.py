"""What a GPU would mind first, without one: everything is where it is used. See `card.py`.

In processes of their own, because a kind of device cannot be taken back.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch is too old for a kind of device that is written in Python",
)
HERE = Path(__file__).parent
# The chapters that train and share, in all precisions together. Any other: python tests/card_chapter.py CHAPTER PROFILE
CHAPTERS = [("02_cot_sft", "l4"), ("04_tapo", "t4"), ("04_tapo", "h100"), ("06_use_it", "l4"), ("07_your_dataset", "l4")]


def run(script, *arguments, **environment):
    """The finished process, whatever became of it."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    return subprocess.run(
        [sys.executable, str(HERE / script), *arguments], capture_output=True, text=True, timeout=1200,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def told(*arguments):
    """What `card_run.py` says in its last line."""
    done = run("card_run.py", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_card_complains_where_cuda_does():
    said = told("complaints")
    refused = {name for name, words in said.items() if words}
    assert refused == {"sum", "cat", "index", "where", "numpy"}  # CUDA takes masks and indices of the CPU
    assert all("same device" in said[name] for name in refused - {"numpy"})


@pytest.mark.parametrize("gpu", ["l4", "h100"])
def test_training_on_the_card_gives_the_cpus_figures(gpu):
    """Towers that wait on the CPU, checkpointing, lean decoding; then with plain matrices and a tower that stays."""
    card, cpu = told("card", gpu), told("cpu", gpu)
    assert card["devices"] == ["card:0"] and cpu["devices"] == ["cpu"]
    assert card["tower"] == ("cpu" if gpu == "l4" else "card:0")
    assert card["figures"] == pytest.approx(cpu["figures"], rel=1e-3) and len(set(card["figures"])) == 8
    assert card["texts"] == cpu["texts"]


@pytest.mark.parametrize("chapter, gpu", CHAPTERS)
def test_chapters_run_with_everything_on_the_card(chapter, gpu, tmp_path):
    done = run("card_chapter.py", chapter, gpu, FINER1_RUNS=str(tmp_path))
    last = done.stdout.splitlines()[-1:]
    assert last == [f"{chapter} as {gpu}: 0 cells failed; policies on {{'card:0'}}"], done.stdout[-4000:] + done.stderr[-1000:]
