"""finer1_lite: understand, reproduce and adapt Fine-R1 (ICLR 2026).

As data you walk: `birds` or your own images -> `cot` (chains) -> `sft` -> `samplers` (triplets) -> `policy`
(rollouts, log-probs) -> `rewards` -> `losses` -> `tapo` -> `evaluate`. `config` picks a profile for the machine,
`story` runs everything without notebooks.
"""

__version__ = "0.1.0"
