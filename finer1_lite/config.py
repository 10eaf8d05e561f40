"""One profile for each kind of machine: the bird world with its tiny model on a CPU, or a Qwen-VL on one CUDA card.

Departures from the paper: LoRA, and so higher learning rates; on the CPU also fewer questions and steps.
"""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from .losses import RELEASED, LossConfig
from .rewards import ending_reward, released_reward

ASSETS = Path(__file__).parent / "birds" / "assets"
RESULTS = ASSETS / "results"  # what the studies measured; chapters show it
CHAPTERS = {"chains.jsonl": 1, "sft_answers": 2, "cot_sft": 2, "dapo": 4, "tapo": 4}  # what makes them; else 7
QWEN_3B = "Qwen/Qwen2.5-VL-3B-Instruct"


@dataclass(frozen=True)
class SFTConfig:
    """Stage 1. `lr` is the peak of a cosine schedule after `warmup_steps`, a tenth of all at most."""

    epochs: int = 10
    batch_size: int = 64
    lr: float = 1e-4
    warmup_steps: int = 6
    weight_decay: float = 0.1
    micro_batch: int = 16  # rows read at once, at most
    micro_tokens: int = 8192  # and their tokens, padding and images included


@dataclass(frozen=True)
class TapoConfig:
    """Stage 2. `num_anchor` + `num_positive` rollouts of a question share one advantage group."""

    steps: int = 100
    questions: int = 8
    num_anchor: int = 5
    num_positive: int = 5
    lr: float = 2e-5
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    top_p: float = 0.99
    max_rounds: int = 20
    micro_batch: int = 10  # rollouts scored at once, at most
    micro_tokens: int = 8192  # and their tokens, images included


@dataclass(frozen=True)
class Profile:
    """Everything that differs between machines. `model_id` is a Hub id or a folder."""

    name: str
    device: str
    model_id: str
    dtype: str
    quantize: bool = True
    lora_r: int = 16
    lora_alpha: int = 32
    system: str | None = None  # the turn before every question; None: the model's own
    max_pixels: int = 448 * 448
    max_new_tokens: int = 400
    rollout_batch: int = 80
    eval_batch: int = 16
    dense_rollout: bool = False  # decode with unpacked matrices: faster, the model in memory once more
    checkpointing: bool = False  # keep only each layer's input for the backward pass, in packed rows
    seed: int = 0
    sft: SFTConfig = SFTConfig()
    sft_answers: SFTConfig = SFTConfig()
    tapo: TapoConfig = TapoConfig()
    loss: LossConfig = RELEASED  # what most likely made the paper's numbers; `losses.TAPO` is the paper's letter
    reward: Callable[[str, str], dict[str, float]] = released_reward

    @property
    def run_dir(self) -> Path:
        """Where this profile's results lie."""
        return runs_folder() / self.name


# The CPU's epochs and learning rates were chosen on validation images of another split (studies/tuning.py).
_CPU = Profile(
    name="cpu", device="cpu", model_id=str(ASSETS / "base"), dtype="float32", max_pixels=112 * 112,
    max_new_tokens=144, rollout_batch=192, eval_batch=256, dense_rollout=True,
    sft=SFTConfig(epochs=16, batch_size=16, lr=2e-3), sft_answers=SFTConfig(epochs=16, batch_size=32, lr=1.25e-4),
    tapo=TapoConfig(steps=40, lr=6e-4, micro_batch=40, max_rounds=3),
    reward=ending_reward,
)  # fmt: skip
# Half of the released chains have more than about 770 tokens; the paper's 20 rounds would take half an hour a step.
_L4 = Profile(
    name="l4", device="cuda", model_id=QWEN_3B, dtype="bfloat16", max_new_tokens=1024, checkpointing=True,
    eval_batch=64, tapo=TapoConfig(max_rounds=3),
)  # fmt: skip
_A100 = replace(_L4, name="a100", dense_rollout=True)
PROFILES: dict[str, Profile] = {p.name: p for p in (
    _CPU, replace(_L4, name="t4", dtype="float16", eval_batch=32), _L4, _A100, replace(_A100, name="h100"),
    replace(_L4, name="a100_bf16", quantize=False),  # LoRA on 16-bit weights
    replace(_L4, name="l4_qwen3", model_id="Qwen/Qwen3-VL-2B-Instruct"),  # Apache 2.0; the 3B forbids commercial use
    replace(_A100, name="a100_7b", model_id="Qwen/Qwen2.5-VL-7B-Instruct"),
)}  # fmt: skip


def get_profile(name: str) -> Profile:
    """The profile `name`; ValueError if there is none, RuntimeError where this machine lacks what it needs."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; choose one of: {', '.join(PROFILES)}")
    profile = PROFILES[name]
    if profile.device == "cuda" and not torch.cuda.is_available():
        advice = 'set PROFILE = "cpu", or on Colab choose Runtime > Change runtime type > GPU'
        raise RuntimeError(f"profile {name!r} needs a CUDA GPU and a torch built for it; {advice}")
    if profile.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RuntimeError(f"profile {name!r} computes in bfloat16, which this card lacks; set PROFILE = \"t4\"")
    return profile


def suggest_profile() -> tuple[str, str]:
    """The profile that fits this machine, and why."""
    if not torch.cuda.is_available():
        return "cpu", "torch sees no CUDA GPU: the bird world with its tiny model runs here in minutes"
    card = torch.cuda.get_device_properties(0)
    gib, bf16 = card.total_memory / 2**30, torch.cuda.is_bf16_supported(including_emulation=False)
    name = "t4" if not bf16 else "l4" if gib < 35 else "a100" if gib < 70 else "h100"
    return name, f"{card.name} with {gib:.0f} GiB and {'bfloat16' if bf16 else 'no bfloat16'}"


def runs_folder() -> Path:
    """`$FINER1_RUNS`, or `runs` beside the nearest pyproject.toml above, or `runs` in this folder."""
    if os.environ.get("FINER1_RUNS"):
        return Path(os.environ["FINER1_RUNS"]).absolute()
    here = Path.cwd()
    return next((f for f in (here, *here.parents) if (f / "pyproject.toml").exists()), here) / "runs"


def artefact(profile: Profile, name: str) -> Path:
    """A file or folder of an earlier chapter: this machine's own, or the shipped one; else FileNotFoundError."""
    own, shipped = profile.run_dir / name, ASSETS / "reference" / name
    if not own.exists() and not (profile.name == "cpu" and shipped.exists()):
        raise FileNotFoundError(f"{name} is not in {own.parent}: run chapter {CHAPTERS.get(name, 7)} first")
    print(f"{name}: {own.relative_to(runs_folder().parent) if own.exists() else 'the shipped one, not your own'}")
    return own if own.exists() else shipped


def versions() -> dict[str, str]:
    """What the figures depend on besides the code."""
    packages = {p: version(p) for p in ("torch", "transformers", "peft", "bitsandbytes", "numpy")}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return packages | {"python": platform.python_version(), "machine": machine}
