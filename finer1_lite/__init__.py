"""finer1_lite: understand, reproduce and adapt Fine-R1 (ICLR 2026).

As data you walk: `birds` or your own images -> `cot` (chains) -> `sft` -> `samplers` (triplets) -> `policy`
(rollouts, log-probs) -> `rewards` -> `losses` -> `tapo` -> `evaluate`. `config` picks a profile for the machine.
"""

import logging
import os
import sys

# Caches grow with the answers: blocks that cannot grow would hold two or three times what is used.
if sys.platform == "linux" and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"

# bitsandbytes would like a kernel from the Hub for some CPUs, which we do not use (policy/load.py).
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# Nor need transformers say that unpacked 4-bit layers are unpacked (share.py).
logging.getLogger("transformers.integrations.bitsandbytes").setLevel(logging.ERROR)

__version__ = "0.1.0"
