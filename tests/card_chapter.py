"""Runs the code of one chapter on the card that is none, with the small values of its tests.

    python tests/card_chapter.py 04_tapo l4

The bird world and its tiny model, but on the card, and in the precision and with the switches of the GPU profile that
is named. Prints the cells that fail, and exits with their number. Results go to $FINER1_RUNS, which must be set.
"""

import json
import os
import sys
import traceback
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import matplotlib
import torch
from card import card
from IPython.core.interactiveshell import InteractiveShell

from finer1_lite.config import PROFILES

CHAPTERS = Path(__file__).parents[1] / "notebooks"
FROM_GPU = ("dtype", "checkpointing", "offload_tower", "dense_rollout")


def run(chapter: str, gpu: str) -> int:
    """The number of cells that failed."""
    taken = {field: getattr(PROFILES[gpu], field) for field in FROM_GPU}
    PROFILES["cpu"] = replace(PROFILES["cpu"], device="card", **taken)
    cells = json.loads((CHAPTERS / f"{chapter}.ipynb").read_text())["cells"]
    shell, failed = InteractiveShell.instance(), 0
    os.chdir(CHAPTERS)
    with card():
        for number, cell in enumerate(cells):
            if cell["cell_type"] != "code":
                continue
            with redirect_stdout(StringIO()):
                result = shell.run_cell("".join(cell["source"]))
            shell.user_ns.update(cell["metadata"].get("nbmake", {}).get("mock", {}))
            error = result.error_before_exec or result.error_in_exec
            if error and failed < 3:  # the others fail for what these did not make
                failed += 1
                print(f"{chapter}, cell {number}:", *traceback.format_exception(error)[-6:])
    used = {str(v.device) for v in shell.user_ns.values() if type(v).__name__ == "Policy"}
    print(f"{chapter} as {gpu}: {failed} cells failed; policies on {used}")
    return failed


if __name__ == "__main__":
    assert os.environ.get("FINER1_RUNS"), "set FINER1_RUNS to a folder for the results"
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True  # `get_profile` asks
    sys.exit(run(*sys.argv[1:]))
