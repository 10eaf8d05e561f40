"""A chapter on the pretended card as a GPU: FINER1_RUNS=some/folder python tests/card_chapter.py 04_tapo l4"""

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

chapter, gpu = sys.argv[1:]
matplotlib.use("Agg")
torch.set_num_threads(1)
torch.cuda.is_bf16_supported = lambda including_emulation=True: True  # `get_profile` asks
names = ("dtype", "checkpointing", "dense_rollout")
PROFILES["cpu"] = replace(PROFILES["cpu"], device="card", **{name: getattr(PROFILES[gpu], name) for name in names})
os.chdir(Path(__file__).parents[1] / "notebooks")
cells = [cell for cell in json.loads(Path(f"{chapter}.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
shell, failed = InteractiveShell.instance(), 0
with card():
    for number, cell in enumerate(cells):
        with redirect_stdout(StringIO()):
            result = shell.run_cell("".join(cell["source"]))
        shell.user_ns.update(cell["metadata"].get("nbmake", {}).get("mock", {}))
        error = result.error_before_exec or result.error_in_exec
        if error and failed < 3:  # the others fail for what these did not make
            failed += 1
            print(f"{chapter}, code cell {number}:", *traceback.format_exception(error)[-6:])
used = {str(v.device) for v in shell.user_ns.values() if type(v).__name__ == "Policy"}
print(f"{chapter} as {gpu}: {failed} cells failed; policies on {used}")
