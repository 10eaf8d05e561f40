"""Load the base model in NF4, put LoRA adapters on the language model, save and load them."""

import gc
import hashlib
import json
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, set_seed
from transformers.integrations import sdpa_attention

from ..config import ASSETS, Profile, get_profile
from .inputs import base_model
from .lora import with_lean_forward

# peft still calls a name that transformers is about to rename.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)

# The vision tower has layers of the same names, so the pattern starts at `language_model`.
TINY_BASE = "finer1_lite/birds/assets/base"  # as adapters' files call it
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
LORA_TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"


@dataclass
class Policy:
    """A model with its processor. `model` is a PeftModel once it has an adapter; `runs` made that, see `Loop.about`."""

    model: torch.nn.Module
    processor: AutoProcessor
    profile: Profile
    runs: tuple[dict, ...] = ()

    @property
    def backbone(self):
        """The Qwen-VL model below the adapter and the language-model head."""
        return base_model(self.model).model

    @property
    def head(self) -> torch.Tensor:
        """The weight (V, H) of the language-model head, with the adapter's own tokens if it has any."""
        head = base_model(self.model).lm_head
        tokens = getattr(head, "token_adapter", None)
        return head.weight if tokens is None else tokens.get_merged_weights(tokens.active_adapters)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.get_input_embeddings().weight.device

    def scoring_mode(self) -> None:
        """Before scoring with gradients: checkpointing works in train mode only. There is no dropout anywhere."""
        self.model.train(self.profile.checkpointing)

    def identity(self) -> dict:
        """What a saved state of the adapter must have been trained with."""
        p, same = self.profile, ("dtype", "quantize", "lora_r", "lora_alpha", "system", "max_pixels", "max_new_tokens")
        model = {"profile": p.name, "model": Path(p.model_id).name, "base": base_digest(self.model)}
        return model | {field: getattr(p, field) for field in same}

    def trainable(self) -> list[torch.nn.Parameter]:
        """The adapter's parameters, which an optimizer should get."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def save(self, folder: str | Path) -> None:
        """Write the adapter as safetensors, without this machine's paths; the weights come last, and whole."""
        for config in self.model.peft_config.values():
            config.base_model_name_or_path = base_name(self.profile)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="part-", dir=folder) as part:
            self.model.save_pretrained(part, save_embedding_layers=False)  # the embedding is the base's
            weights = Path(part) / ADAPTER_FILES[1]
            facts = {"format": "pt", "base": base_digest(self.model), "runs": json.dumps(self.runs)}
            about = facts | {"policy": json.dumps(self.identity())}
            save_file(load_file(weights), weights, about)
            for name in ADAPTER_FILES:  # not peft's empty README
                (Path(part) / name).replace(folder / name)


def base_name(profile: Profile) -> str:
    """The base model's name without this machine's path."""
    base = Path(profile.model_id)
    ours = TINY_BASE if base.resolve() == (ASSETS / "base").resolve() else base.name
    return ours if base.exists() else profile.model_id


def quantization(four_bit: bool, dtype: str) -> BitsAndBytesConfig | None:
    """NF4 with double quantisation for the language model's linears; the tower and the tied head stay."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="bfloat16" if dtype == "auto" else dtype,
        llm_int8_skip_modules=["model.visual", "model.vision_tower", "model.vision_model", "lm_head"],
    ) if four_bit else None  # fmt: skip


def load_base(profile: Profile) -> Policy:
    """The base model, frozen, in the profile's precision; ValueError for another than a Qwen2.5-VL or Qwen3-VL."""
    if Path(profile.model_id).is_dir() and not (Path(profile.model_id) / "config.json").is_file():
        raise FileNotFoundError(f"{profile.model_id} holds no config.json: it is not the folder of a model")
    if (kind := AutoConfig.from_pretrained(profile.model_id).model_type) not in ("qwen2_5_vl", "qwen3_vl"):
        raise ValueError(f"{profile.model_id} is a model of the kind {kind!r}: set a Qwen2.5-VL's or Qwen3-VL's name")
    suit_the_card(profile.device)
    gc.collect()  # 4-bit layers refer to themselves: of a model that was let go, they are still on the card
    model = AutoModelForImageTextToText.from_pretrained(
        profile.model_id, dtype=profile.dtype, quantization_config=quantization(profile.quantize, profile.dtype),
        device_map=profile.device, use_safetensors=True,
    )  # fmt: skip
    for layer in model.modules():
        if isinstance(layer, Linear4bit):  # else on CPUs with AVX512-BF16 in bfloat16, without gradients
            layer.support_avx512bf16_for_cpu = False
    if profile.dtype == "float16":  # some image sizes overflow fp16 in the tower
        model.model.visual.float()
    if profile.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return Policy(model.requires_grad_(False).eval(), load_processor(profile), profile)


def suit_the_card(device: str) -> None:
    """Settings of PyTorch for this process, where it computes on a GPU."""
    if torch.device(device).type == "cuda":
        if "LOCAL_RANK" in os.environ:  # peft loads an adapter to the current card, not to the model's
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # A T4 has no flash attention, and without it PyTorch before 2.15 takes the slowest kernel for grouped heads.
        if torch.cuda.get_device_capability()[0] < 8:
            sdpa_attention.use_gqa_in_sdpa = lambda *_: False
        # cuDNN's attention plans anew for each decoded token; some versions give NaN gradients (PyTorch 196678).
        torch.backends.cuda.enable_cudnn_sdp(False)
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False  # Qwen overflows there


def load_processor(profile: Profile) -> AutoProcessor:
    """The base's processor with the profile's pixels and system turn."""
    processor = AutoProcessor.from_pretrained(profile.model_id)  # `max_pixels` here would warn at every later call
    processor.image_processor.size = dict(processor.image_processor.size) | {"longest_edge": profile.max_pixels}
    if profile.system is not None:  # in the template, so that it is saved with the processor
        first = f"[{{'role': 'system', 'content': {json.dumps(profile.system)}}}]"
        own = f"{{% if messages[0]['role'] != 'system' %}}{{% set messages = {first} + messages %}}{{% endif %}}"
        processor.chat_template = own + processor.chat_template
    return processor


def add_adapter(policy: Policy, seed: int, new_tokens: list[int] | None = None) -> Policy:
    """A fresh LoRA adapter on the language model's linears; trains the embeddings of the ids `new_tokens` too."""
    set_seed(seed)
    size = {"r": policy.profile.lora_r, "lora_alpha": policy.profile.lora_alpha}
    lora = LoraConfig(**size, target_modules=LORA_TARGETS, task_type="CAUSAL_LM", trainable_token_indices=new_tokens)
    return replace(policy, model=with_lean_forward(get_peft_model(policy.model, lora)))


def load_policy(profile: Profile, adapter: str | Path | None = None, seed: int = 0, trainable: bool = True) -> Policy:
    """The base model with a fresh adapter, or with the one saved in the folder `adapter`."""
    policy = load_base(profile)
    if adapter is None:
        return add_adapter(policy, seed)
    model = with_lean_forward(read_adapter(policy.model, adapter, trainable)).eval()
    return replace(policy, model=model, runs=tuple(_about(adapter, "runs", "[]")))


def _about(adapter: str | Path, key: str, default: str):
    with safe_open(Path(adapter) / ADAPTER_FILES[1], "pt") as file:
        return json.loads((file.metadata() or {}).get(key, default))


def profile_of(adapter: str | Path, model_id: str | None = None) -> Profile:
    """The profile that the adapter in a folder was trained with, as its files say.

    model_id: where its base lies, if not on the Hub or in this package. ValueError for an adapter that does not say
    what it is or needs `model_id`, RuntimeError as `get_profile`.
    """
    check_files(adapter)
    told = _about(adapter, "policy", "{}")
    if not told:
        raise ValueError(f"the adapter in {adapter} does not say how it was trained: load it with `load_policy`")
    base = model_id or json.loads((Path(adapter) / ADAPTER_FILES[0]).read_text())["base_model_name_or_path"]
    base = str(ASSETS / "base") if base == TINY_BASE else base
    if "/" not in base and not Path(base).is_dir():
        raise ValueError(f"the adapter in {adapter} is for the base {base!r}: give its folder as `model_id`")
    known = {key: value for key, value in told.items() if key not in ("profile", "model", "base")}
    return replace(get_profile(told["profile"]), model_id=base, **known)


def read_adapter(model, folder: str | Path, trainable: bool = False) -> PeftModel:
    """`model` with the adapter in `folder`, whole and of this base, or an error that says what is missing.

    FileNotFoundError without its two files, which PEFT would look for on the Hub, or in a pickle. ValueError for
    weights that are damaged, lack some or fit another model, and for an adapter of another base.
    """
    weights = check_files(folder)
    try:
        with safe_open(weights, "pt") as file:
            has, base = set(file.keys()), (file.metadata() or {}).get("base")
    except SafetensorError as error:
        raise ValueError(f"{weights} is damaged ({error}): copy or train it again") from None
    if base not in (None, base_digest(model)):
        raise ValueError(f"the adapter in {folder} was trained on another base than this one: load that, or train anew")
    try:
        made = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
    except RuntimeError as error:  # of shapes
        raise ValueError(f"the adapter in {folder} does not fit this base: {error}") from None
    wants = set(get_peft_model_state_dict(made, save_embedding_layers=False))
    if odd := sorted(has ^ wants):
        what = f"{len(wants - has)} tensors are missing and {len(has - wants)} are of another model, as {odd[0]}"
        raise ValueError(f"the adapter in {folder} does not fit this base: {what}; copy or train it again")
    return made


def check_files(folder: str | Path) -> Path:
    """The file of an adapter's weights; FileNotFoundError without it or the one beside it."""
    if missing := [name for name in ADAPTER_FILES if not (Path(folder) / name).is_file()]:
        raise FileNotFoundError(
            f"no adapter in {folder}: {missing[0]} is missing; run the notebook that trains it, or use the shipped one"
        )
    return Path(folder) / ADAPTER_FILES[1]


def base_digest(model) -> str:
    """A digest of the base below an adapter, the same in all precisions: of its norms, which training moves too."""
    norms = {n: p.float() for n, p in base_model(model).model.language_model.named_parameters() if "norm" in n}
    return digest(norms)[:16]


def digest(tensors: dict[str, torch.Tensor], text: str = "") -> str:
    """A hash of a text and of names and values of tensors of any dtype and device."""
    made = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        made.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return made.hexdigest()


def fingerprint(policy: Policy) -> str:
    """A digest of what decides greedy answers: the adapter's weights, the base's last layer, precision and limits."""
    names = ("dtype", "quantize", "system", "max_pixels", "max_new_tokens")
    limits = tuple(getattr(policy.profile, name) for name in names)
    weights = dict(policy.backbone.language_model.layers[-1].named_parameters())  # other bases differ in all layers
    if isinstance(policy.model, PeftModel):
        weights |= get_peft_model_state_dict(policy.model, save_embedding_layers=False)
    return hashlib.sha256(f"{limits} {digest(weights)}".encode()).hexdigest()
