"""The tiny Qwen2.5-VL of the bird world: the real model, tokenizer and processor classes, 2 M parameters."""

import json

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import (
    Qwen2_5_VLConfig, Qwen2_5_VLProcessor, Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen2VLVideoProcessor,
)  # fmt: skip
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_position_ids

from ..cot.chains import PARTS
from .render import SIZE

PATCH, MERGE = 14, 2
SPECIAL = tuple(f"<|{t}|>" for t in "endoftext im_start im_end vision_start vision_end image_pad video_pad".split())
TAGS = tuple(f"<{slash}{part}>" for part in PARTS for slash in ("", "/"))  # of a chain's parts, one token each
# Qwen's way to split text into words before the byte pairs are merged.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What Qwen2.5-VL's template prints for text and images, without its video and tool branches.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(texts: list[str]) -> Qwen2Tokenizer:
    """A byte-level BPE with Qwen's rules, merged until every word of `texts` is one token; and the tags."""
    core = Tokenizer(models.BPE())
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), bytewise])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=8192, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(texts, trainer)
    state = json.loads(core.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]], unk_token=None, model_max_length=4096,
        additional_special_tokens=list(SPECIAL[1:]), eos_token="<|im_end|>", pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    tokenizer.add_tokens(list(TAGS))
    return tokenizer


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLProcessor:
    """The 3B's processor class; images of the world keep their 112x112 pixels (16 tokens)."""
    size = {"shortest_edge": SIZE * SIZE, "longest_edge": SIZE * SIZE}
    images = Qwen2VLImageProcessor(patch_size=PATCH, merge_size=MERGE, size=size)
    videos = Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=MERGE)
    return Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=CHAT_TEMPLATE)


def build_config(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLConfig:
    """Five LLM layers and three vision layers of width 128."""
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in SPECIAL}
    text = dict(
        vocab_size=-(-len(tokenizer) // 64) * 64, hidden_size=128, intermediate_size=384, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"], pad_token_id=ids["<|endoftext|>"],
    )  # fmt: skip
    vision = dict(depth=3, hidden_size=128, intermediate_size=256, num_heads=4, out_hidden_size=128, patch_size=PATCH,
                  window_size=SIZE, fullatt_block_indexes=[0, 1, 2])  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip


def normalise(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, 112, 112, 3) to the image processor's scale, (B, 3, 112, 112)."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(OPENAI_CLIP_MEAN).view(3, 1, 1)) / torch.tensor(OPENAI_CLIP_STD).view(3, 1, 1)


def features(visual, pixels: torch.Tensor) -> torch.Tensor:
    """Merged tokens (B, 16, H) of the tower `visual` for images (B, 3, 112, 112) of one size, in one batch."""
    b, side, n = pixels.shape[0], SIZE // (PATCH * MERGE), (SIZE // PATCH) ** 2
    # Qwen's order of patches: those of a 2x2 group lie side by side.
    x = pixels.view(b, 3, side, MERGE, PATCH, side, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(b, n, -1)
    # An image is two equal frames in time, so the kernels of the two can be summed.
    x = x @ visual.patch_embed.proj.weight.sum(2).flatten(1).T
    positions = get_vision_position_ids(torch.tensor([[1, SIZE // PATCH, SIZE // PATCH]]), MERGE)
    cos, sin = visual.rotary_pos_emb(x, positions)
    for block in visual.blocks:
        attention = block.attn
        q, k, v = attention.qkv(block.norm1(x)).view(b, n, 3, attention.num_heads, -1).unbind(2)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        x = x + attention.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return visual.merger(x.flatten(0, 1)).view(b, -1, visual.config.out_hidden_size)
