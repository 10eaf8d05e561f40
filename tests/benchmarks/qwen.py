"""The shapes of Qwen2.5-VL from `config.json` of the 3B and 7B on the Hub; as many parameters as published."""

from transformers import Qwen2_5_VLConfig

SHAPES = {
    "3B": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip


def qwen_config(size: str) -> Qwen2_5_VLConfig:
    shape = SHAPES[size]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = shape | {"max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "rope_parameters": rope}
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": shape["hidden_size"],
        "tokens_per_second": 2,
    }  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=shape["tie_word_embeddings"],
        image_token_id=151655, video_token_id=151656, vision_start_token_id=151652,
        vision_end_token_id=151653,
    )  # fmt: skip
