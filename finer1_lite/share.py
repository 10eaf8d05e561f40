"""Give a trained adapter away: with a card filled from the run, as one 16-bit model, on the Hub if you ask.

`push` is the only function of the package that sends anything anywhere, and no other function calls it.
"""

import gc
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from huggingface_hub import HfApi, ModelCardData
from peft import PeftModel
from transformers import Qwen2_5_VLForConditionalGeneration

from . import __version__
from .config import ASSETS, QWEN_3B, Profile, versions
from .policy.load import Policy, base_name, load_processor, quantization, suit_the_card
from .recipes import dapo_setting
from .use import BARE_PROMPT, PROMPT

METHOD_NAMES = {"sft_answers": "SFT on answers", "cot_sft": "CoT SFT", "dapo": "DAPO", "tapo": "TAPO"}
TINY = str(ASSETS / "base")
QWEN_TERMS = f"https://huggingface.co/{QWEN_3B}/blob/main/LICENSE"
LICENCES = {  # base -> what the Hub reads, what a person reads
    TINY: ({"license": "mit"}, "MIT, like the base, which finer1_lite pre-trained itself."),
    QWEN_3B: (
        {"license": "other", "license_name": "qwen-research", "license_link": QWEN_TERMS},
        f"Improved using Qwen. The base's [Qwen Research License]({QWEN_TERMS}) holds: no commercial use.",
    ),
}
UNKNOWN = ({"license": "unknown"}, "That of the base; look it up before you pass this on.")
UPLOADED = ["README.md", "*.safetensors", "*.json", "*.jinja"]
LOAD = """\
from peft import PeftModel
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
base = Qwen2_5_VLForConditionalGeneration.from_pretrained({base}, dtype="auto", device_map="auto")
model = PeftModel.from_pretrained(base, ".")  # "." is this folder; else its path, or its name on the Hub
processor = AutoProcessor.from_pretrained(".")"""
LOAD_MERGED = """\
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(".", dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained(".")"""
CARD = """\
---
{metadata}
---

# {method} on {base}

{kind}, made with [finer1_lite](https://github.com/OWNER/finer1_lite) {version},
an independent reproduction of Fine-R1 (He, Geng, Peng, ICLR 2026,
[arXiv 2602.07605](https://arxiv.org/abs/2602.07605)). It names what a picture shows{thinks}.

## Use

```python
{load}
```

```python
from PIL import Image
question = "{question}"
chat = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": question}}]}}]
text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
inputs = processor(text=[text], images=[Image.open("picture.png")], return_tensors="pt").to(model.device)
made = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False, repetition_penalty=1.0)
print(processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

{weights}

## Data

{data}

## Training

{training}

## Results

{results}

## Limits

It gives a name to every picture, also to one of something else. A right name can follow a wrong chain.
Another question, precision or version of a library can change an answer.

## Licence

{licence}
"""


def stages(profile: Profile, method: str) -> dict[str, object]:
    """What was done to the base, in order: stage -> settings. ValueError for a method that trains nothing."""
    if method not in METHOD_NAMES:
        raise ValueError(f"no adapter comes from {method!r}; choose one of: {', '.join(METHOD_NAMES)}")
    if method == "sft_answers":
        return {"SFT on answers": profile.sft_answers}
    config, loss = (profile.tapo, profile.loss) if method == "tapo" else dapo_setting(profile)
    name = METHOD_NAMES[method]
    return {"CoT SFT": profile.sft} | ({} if method == "cot_sft" else {name: config, f"{name}'s loss": loss})


def model_card(
    profile: Profile, method: str, data: str, results: pd.DataFrame | None = None, merged: bool = False,
    prompt: str | None = None,
) -> str:  # fmt: skip
    """The README.md of an adapter, or of the `merged` model: metadata for the Hub, then the run in words.

    profile: with the settings that were used (`policy.profile`). data: what it was trained on, in your words.
    results: rows of a results file (`evaluate.COLUMNS`), of the seed that the adapter comes from. prompt: the question
    with its instruction, as in training; that about birds if not given. ValueError
    for a method that trains nothing or has no rows.
    """
    settings = [
        f"- {stage}: " + ", ".join(f"{key} {value}" for key, value in asdict(values).items())
        for stage, values in stages(profile, method).items()
    ]
    lora = f"- LoRA on every linear of the language model: r {profile.lora_r}, alpha {profile.lora_alpha}"
    made_with = "- " + ", ".join(f"{key} {value}" for key, value in versions().items())
    base, think = base_name(profile), method != "sft_answers"
    return CARD.format(
        metadata=_metadata(profile, results is not None, merged), method=METHOD_NAMES[method], base=base,
        kind=f"{base} with a LoRA adapter merged into it" if merged else f"A LoRA adapter for {base}",
        thinks=",\nafter a chain of analysis, candidates, comparison and prediction" if think else "",
        version=__version__, load=LOAD_MERGED if merged else _load(profile),
        question=prompt or (PROMPT if think else BARE_PROMPT), tokens=profile.max_new_tokens,
        weights=_weights(profile, merged), data=data,
        training="\n".join([f"{lora}; seed {profile.seed}", *settings, made_with]),
        results=_results(results, method), licence=LICENCES.get(profile.model_id, UNKNOWN)[1],
    )  # fmt: skip


def _load(profile: Profile) -> str:
    """Five lines of plain transformers and peft; a sixth says where the tiny base is."""
    if profile.model_id == TINY:
        where = "from finer1_lite.config import ASSETS  # the tiny base comes with the package\n"
        return where + LOAD.format(base='str(ASSETS / "base")')
    return LOAD.format(base=f'"{base_name(profile)}"')


def _metadata(profile: Profile, measured: bool, merged: bool) -> str:
    """The YAML of the card. A local base is left out: the Hub refuses a card whose base it does not host."""
    hosted = not Path(profile.model_id).exists()
    return ModelCardData(
        base_model=base_name(profile) if hosted else None,
        base_model_relation=("finetune" if merged else "adapter") if hosted else None,
        library_name="transformers" if merged else "peft", pipeline_tag="image-text-to-text", language="en",
        tags=["fine-r1", "fine-grained-recognition", "chain-of-thought", "lora"],
        metrics=["accuracy"] if measured else None, **LICENCES.get(profile.model_id, UNKNOWN)[0],
    ).to_yaml()  # fmt: skip


def _weights(profile: Profile, merged: bool) -> str:
    """How these weights relate to the ones that were trained and judged."""
    packed = quantization(profile)
    if packed is None:
        return f"Trained and judged in {profile.dtype}."
    if merged:
        return "Trained and judged on the base in NF4. Here NF4's weights are unpacked to bfloat16, with the adapter in them."
    options = ", ".join(f"{k}={v!r}" for k, v in packed.to_diff_dict().items() if not k.startswith("_"))
    return (
        "Trained and judged on the base in NF4. For those very weights load the base with\n"
        f"`quantization_config=BitsAndBytesConfig({options})` from transformers."
    )


def _results(results: pd.DataFrame | None, method: str) -> str:
    if results is None:
        return "Not measured."
    rows = results[(results.metric == "accuracy") & (results.method == method)]
    if rows.empty:
        there = ", ".join(sorted(set(results.method)))
        raise ValueError(f"the results hold no accuracy of {method!r}, only of: {there}")
    lines = ["| protocol | classes | accuracy, % | images | seeds |", "| --- | --- | --- | --- | --- |"]
    for (protocol, split), part in rows.groupby(["protocol", "split"]):
        seeds = ", ".join(map(str, sorted(part.seed)))
        lines.append(f"| {protocol} | {split} | {100 * part.value.mean():.1f} | {part.n.sum()} | {seeds} |")
    return "\n".join(lines) + (
        "\n\nOpen: the bare question. Closed: with four options that look alike. Right: the greedy answer\n"
        "contains the name. Unseen: classes of which no picture was trained on."
    )


def save_for_sharing(
    policy: Policy, folder: str | Path, method: str, data: str, results: pd.DataFrame | None = None,
    prompt: str | None = None,
) -> Path:  # fmt: skip
    """Write adapter (safetensors), processor and `model_card`: all that a stranger needs besides the base."""
    folder = Path(folder)
    card = model_card(policy.profile, method, data, results, prompt=prompt)  # first: a wrong argument leaves no folder
    policy.save(folder)
    _save_processor(policy.profile, folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def merge_16bit(profile: Profile, adapter: str | Path, folder: str | Path, card: str) -> Path:
    """Write base + adapter as one model in bfloat16 with its processor; plain transformers loads the folder.

    The base is loaded anew, on the profile's device, as the adapter met it: where it was trained on NF4, NF4's weights are
    unpacked, rounding included, and the adapter is added to those. So the merged model is the one that was judged, but for
    bfloat16 (two bytes of memory for each parameter); the original weights would make another one. Chapter 6 measures both.
    card: see `model_card(merged=True)`. FileNotFoundError without an adapter.
    """
    folder = Path(folder)
    if not (Path(adapter) / "adapter_config.json").exists():
        raise FileNotFoundError(f"no adapter in {adapter}: give a folder of save_for_sharing or a chapter")
    suit_the_card(profile.device)
    dtype = getattr(torch, profile.dtype)
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        profile.model_id, dtype=dtype, quantization_config=quantization(profile), use_safetensors=True,
        device_map=profile.device,
    )  # fmt: skip
    if profile.quantize:
        base = base.dequantize(dtype)
        gc.collect()  # 4-bit layers refer to themselves
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload(safe_merge=True).to(torch.bfloat16)
    for config in (merged.config, merged.config.text_config, merged.config.vision_config):
        config.dtype = torch.bfloat16
    merged.save_pretrained(folder, max_shard_size="2GB")  # a shard has a second copy in the machine's memory
    _save_processor(profile, folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _save_processor(profile: Profile, folder: Path) -> None:
    processor = load_processor(profile)
    for ours in ("is_local", "local_files_only"):  # how *we* loaded it
        processor.tokenizer.init_kwargs.pop(ours, None)
    processor.save_pretrained(folder)


def push(folder: str | Path, repo_id: str, private: bool = True) -> str:
    """Upload weights, settings and card of a folder to the Hub, nothing else in it; returns the address.

    Log in first (`hf auth login`); HF_HUB_OFFLINE=1 forbids it. A repository that is there already stays as
    private or public as it is. FileNotFoundError for a folder that is not ready.
    """
    folder = Path(folder)
    for needed in ("README.md", "*.safetensors"):
        if not list(folder.glob(needed)):
            raise FileNotFoundError(f"no {needed} in {folder}: write it with save_for_sharing or merge_16bit")
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    names = [path.name for pattern in UPLOADED for path in folder.glob(pattern)]  # a pattern would match subfolders too
    return api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=names)
