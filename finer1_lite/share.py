"""Give a trained adapter away: with a card filled from the run, as one 16-bit model; `push` alone sends anything."""

import gc
import re
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData

from . import __version__
from .config import ASSETS, QWEN_3B, Profile, versions
from .files import write_whole
from .policy.load import Policy, base_name, load_base, load_processor, quantization, read_adapter
from .use import BARE_PROMPT, PROMPT, prompt_of

METHOD_NAMES = {"sft_answers": "SFT on answers", "cot_sft": "CoT SFT", "dapo": "DAPO", "tapo": "TAPO"}
CARD = Path(__file__).with_name("card.md")
TINY = str(ASSETS / "base")
TERMS = f"https://huggingface.co/{QWEN_3B}/blob/main/LICENSE"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
OURS = re.compile(  # what save_for_sharing and merge_16bit write; a folder may hold keys and other people's weights
    r"README\.md|chat_template\.jinja|merges\.txt|adapter_model\.safetensors|model(-\d{5}-of-\d{5})?\.safetensors"
    r"|(adapter_config|config|generation_config|model\.safetensors\.index|processor_config|preprocessor_config"
    r"|video_preprocessor_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
)
APACHE = {"license": "apache-2.0"}, "Apache 2.0, like the base."
UNKNOWN = {"license": "unknown"}, "That of the base; look it up before you pass this on."
LICENCES = {  # base -> what the Hub reads, what a person reads
    TINY: ({"license": "mit"}, "MIT, like the base, which finer1_lite pre-trained itself."),
    QWEN_3B: ({"license": "other", "license_name": "qwen-research", "license_link": TERMS},
              f"Improved using Qwen. The base's [Qwen Research License]({TERMS}) holds: no commercial use."),
    **dict.fromkeys([f"Qwen/{n}-Instruct" for n in ("Qwen2.5-VL-7B", "Qwen3-VL-2B", "Qwen3-VL-4B")], APACHE),
}  # fmt: skip


def model_card(policy: Policy, method: str, data: str, results=None, merged=False, prompt=None) -> str:
    """The README.md of an adapter, or of the `merged` model: metadata for the Hub, then the run (`card.md`).

    data: what it was trained on, in your words. results: table of a results file, of the seed of the adapter.
    prompt: the question, if not as in training. ValueError for another method.
    """
    if method not in METHOD_NAMES:
        raise ValueError(f"no adapter comes from {method!r}; choose one of: {', '.join(METHOD_NAMES)}")
    rows = []
    if results is not None:
        table = results[(results.metric == "accuracy") & (results.method == method)]
        if table.empty:
            raise ValueError(f"results without accuracy of {method!r}, only of: {', '.join(results.method.unique())}")
        rows = [(*group, f"{100 * part.value.mean():.1f}", part.n.sum(), ", ".join(map(str, sorted(part.seed))))
                for group, part in table.groupby(["protocol", "split"])]  # fmt: skip
    name, profile = METHOD_NAMES[method], policy.profile
    runs = [{k: len(v) if k == "classes" else v for k, v in run.items() if k not in ("end", "prompt")}
            for run in policy.runs]  # fmt: skip
    hub, licence = LICENCES.get(profile.model_id, UNKNOWN)
    base, think, packed = base_name(profile), method != "sft_answers", quantization(profile.quantize, profile.dtype)
    relation = {"base_model": base, "base_model_relation": "finetune" if merged else "adapter"}
    metadata = ModelCardData(
        library_name="transformers" if merged else "peft", pipeline_tag="image-text-to-text", language="en",
        tags=["fine-r1", "fine-grained-recognition", "chain-of-thought", "lora"],
        metrics=None if results is None else ["accuracy"], **hub,
        **({} if Path(profile.model_id).exists() else relation),  # the Hub refuses a base that it does not host
    )  # fmt: skip
    options = {} if packed is None else packed.to_diff_dict()
    return str(ModelCard.from_template(
        metadata, CARD, profile=profile, method=name, base=base, merged=merged, think=think,
        data=data, tiny=profile.model_id == TINY, version=__version__,
        question=prompt or prompt_of(policy, PROMPT if think else BARE_PROMPT),
        quantization=", ".join(f"{k}={v!r}" for k, v in options.items() if not k.startswith("_")),
        runs=runs, versions=versions(), rows=rows, licence=licence,
    ))  # fmt: skip


def save_for_sharing(policy: Policy, folder: str | Path, method: str, data: str, results=None, prompt=None) -> Path:
    """Write adapter (safetensors), processor and `model_card`: all that a stranger needs besides the base."""
    card = model_card(policy, method, data, results, prompt=prompt)  # first: an error leaves no folder
    policy.save(folder)
    return _save_rest(policy.profile, Path(folder), card)


def merge_16bit(profile: Profile, adapter: str | Path, folder: str | Path, card: str) -> Path:
    """Write base + adapter as one model in bfloat16 with its processor; plain transformers loads the folder.

    NF4's weights are unpacked, rounding included, and the adapter is added to those: so the merged model is the one
    that was evaluated, but for bfloat16. card: see `model_card(merged=True)`.
    """
    base = load_base(replace(profile, checkpointing=False)).model
    if profile.quantize:
        base = base.dequantize(getattr(torch, profile.dtype))
        gc.collect()  # 4-bit layers refer to themselves
    merged = read_adapter(base, adapter).merge_and_unload(safe_merge=True).to(torch.bfloat16)
    for config in (merged.config, merged.config.text_config, merged.config.vision_config):
        config.dtype = torch.bfloat16
    merged.save_pretrained(folder, max_shard_size="2GB")  # a shard has a second copy in the machine's memory
    return _save_rest(profile, Path(folder), card)


def _save_rest(profile: Profile, folder: Path, card: str) -> Path:
    processor = load_processor(profile)
    for ours in ("is_local", "local_files_only"):  # how *we* loaded it
        processor.tokenizer.init_kwargs.pop(ours, None)
    processor.save_pretrained(folder)
    write_whole(folder / "README.md", card)
    return folder


def push(folder: str | Path, repo_id: str, private: bool = True) -> str:
    """Upload weights, settings and card of a folder to the Hub, by their names and nothing else; returns the address.

    Log in first (`hf auth login`). A repository that exists stays private or public. FileNotFoundError if not ready.
    """
    folder = Path(folder)
    if not (folder / "README.md").is_file() or not any((folder / name).is_file() for name in WEIGHTS):
        raise FileNotFoundError(f"no README.md and weights in {folder}: write it with save_for_sharing or merge_16bit")
    api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    names = [path.name for path in folder.iterdir() if OURS.fullmatch(path.name)]
    return api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=names)
