"""The estimate against a model on the meta device, and against the bytes alive in the real loops."""

import sys
import weakref
from dataclasses import replace
from operator import attrgetter

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import quantize_4bit
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from finer1_lite import memory
from finer1_lite.config import ASSETS, PROFILES
from finer1_lite.losses import DAPO, LossConfig, chunked_logps
from finer1_lite.memory import (
    CHUNK, CONTEXT, GIB, LEVERS, NF4, Plan, advise, changed, check, encode, estimate, generate, lacks,
    main, report, reserved, sizes, train, update_passes, weights,
)  # fmt: skip
from finer1_lite.policy.inputs import VisionCache, prompt_ids
from finer1_lite.policy.load import LORA_TARGETS, load_policy
from finer1_lite.policy.prefix import ROOM, read_prompts
from finer1_lite.policy.qwen import qwen_config
from finer1_lite.policy.rollout import rollout, sample_tokens
from finer1_lite.policy.scoring import completion_logps
from finer1_lite.sft import answer_loss

QUESTION = "What bird is this?"
PUBLISHED = {"3B": 3_754_622_976, "7B": 8_292_166_656}  # parameters of the weights on the Hub


class LiveBytes(TorchDispatchMode):
    """`peak` bytes of tensors made inside that were alive at once; what existed before does not count."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.notice((args, kwargs), new=False)
        out = function(*args, **(kwargs or {}))
        self.notice(out, new=True)
        self.peak = max(self.peak, self.live)
        return out

    def notice(self, tree, new):
        for tensor in tree_leaves(tree):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known:
                size = storage.nbytes() if new else 0
                self.known.add(storage._cdata)
                self.live += size
                weakref.finalize(storage, self.forget, storage._cdata, size)

    def forget(self, key, size):
        self.known.discard(key)
        self.live -= size


def made(items):
    """Bytes of an estimate's items that do not lie on the card before the phase starts."""
    standing = ("language model", "embedding, head", "LoRA", "Adam", "gradients of LoRA", "vision tower")
    return sum(v for k, v in items.items() if k not in standing)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A random model of the 3B's proportions, an eighth as wide, in NF4 with LoRA and checkpointing."""
    base = Qwen2_5_VLConfig.from_pretrained(ASSETS / "base").to_dict()
    base["text_config"] |= {
        "hidden_size": 256, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 16,
        "num_key_value_heads": 2, "layer_types": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    base["vision_config"] |= {"hidden_size": 160, "intermediate_size": 428, "out_hidden_size": 256}
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration._from_config(Qwen2_5_VLConfig(**base), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(ASSETS / "base").save_pretrained(folder)
    policy = load_policy(replace(
        PROFILES["cpu"], model_id=str(folder), dtype="bfloat16", checkpointing=True, offload_tower=True,
        dense_rollout=False, max_pixels=224**2,
    ))  # fmt: skip
    for p in policy.trainable():
        p.grad = torch.zeros_like(p)
    for module in policy.model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # else bitsandbytes repacks weights on such a CPU
            module.support_avx512bf16_for_cpu = False
    return policy


@pytest.fixture(scope="module")
def seen(policy):
    images = [Image.effect_noise((224, 224), 50).convert("RGB") for _ in range(8)]
    return VisionCache(policy.model, policy.processor, images).get(range(8))


@pytest.fixture
def exact_prompts(policy, seen, monkeypatch):
    """The number of text tokens that this file's question really has, not the bound for real ones."""
    length = len(prompt_ids(policy.processor, QUESTION, seen[0]))
    monkeypatch.setattr(memory, "TEXT_TOKENS", length - len(seen[0].tokens))
    return length


def close(estimated, measured, above=1.1):
    """An estimate may be too high by a tenth; where it is too low, hours are lost."""
    assert 0.97 * measured < estimated < above * measured, f"{estimated / measured:.3f} of what was measured"


# ---- what stands


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_those_of_the_model_on_the_meta_device(size):
    config = qwen_config(size)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    counted = sizes(config, lora_r=16)
    linears = [m.weight for n, m in model.model.language_model.layers.named_modules() if n.endswith("_proj")]
    assert counted["linears"] == sum(w.numel() for w in linears)
    assert counted["embedding"] == model.get_input_embeddings().weight.numel()
    assert counted["vision"] == sum(p.numel() for p in model.model.visual.parameters())
    everything = sum(v for k, v in counted.items() if k != "lora")
    assert everything == sum(p.numel() for p in model.parameters()) == PUBLISHED[size]
    with torch.device("meta"):
        model = get_peft_model(model, LoraConfig(r=16, target_modules=LORA_TARGETS))
    assert counted["lora"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_3b_is_as_large_as_the_limits_assume():
    counted = sizes(qwen_config("3B"), lora_r=16)
    wanted = {"linears": 2775, "embedding": 311, "vision": 669, "lora": 29.9}
    assert {k: counted[k] / 1e6 for k in wanted} == pytest.approx(wanted, rel=2e-3)


def test_an_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="3B, 7B"):
        qwen_config("72B")


def test_nf4_takes_the_bytes_of_a_really_quantised_matrix():
    packed, state = quantize_4bit(torch.randn(1024, 2048), compress_statistics=True, quant_type="nf4")
    assert packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes == 1024 * 2048 * NF4


def test_weights_are_those_of_a_really_loaded_model(policy):
    parts = weights(policy.profile, policy.model.config, tower=True)
    model = policy.model.get_base_model()
    assert parts["vision tower"] == sum(p.nbytes for p in model.model.visual.parameters())
    assert parts["embedding, head"] == model.get_input_embeddings().weight.nbytes
    assert parts["LoRA"] == sum(p.nbytes for p in policy.trainable())
    layers = model.model.language_model
    packed = sum(p.nbytes for n, p in layers.named_parameters() if "lora" not in n and "embed" not in n)
    scales = [m.weight.quant_state for m in layers.modules() if isinstance(m, bnb.nn.Linear4bit)]
    packed += sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in scales)
    assert parts["language model"] == pytest.approx(packed, rel=1e-3)


def test_fp16_profiles_hold_the_tower_in_fp32_and_others_in_16_bits():
    towers = {n: weights(PROFILES[n], qwen_config("3B"), tower=True)["vision tower"] for n in ("t4", "l4")}
    assert towers["t4"] == 2 * towers["l4"] == 4 * 668_684_288


# ---- what comes and goes, against the bytes alive in the real code


def test_the_cache_has_the_bytes_of_the_real_one(policy, seen, exact_prompts):
    prefix = read_prompts(policy, [(QUESTION, s) for s in seen[:3]])
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in prefix.cache.layers)
    profile = replace(policy.profile, max_new_tokens=50)
    phases = generate(profile, policy.model.config, prompts=3, num_generations=4)
    assert phases["prefill"]["KV cache"] == real
    assert phases["decode"]["KV cache"] == 4 * real * (exact_prompts + 50 + ROOM) / exact_prompts
    assert phases["decode"]["KV copy"] == phases["decode"]["KV cache"] / 12  # keys of one of six layers


def test_one_token_of_the_3b_takes_36_kib_of_cache():
    plans = (replace(PROFILES["l4"], max_new_tokens=n) for n in (100, 101))
    shorter, longer = (generate(plan, qwen_config("3B"), 1, 1)["decode"]["KV cache"] for plan in plans)
    assert longer - shorter == 36 * 1024


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_encoding(policy, dtype, monkeypatch):
    """For an fp16 profile the tower computes in fp32."""
    config, used = policy.model.config.vision_config, torch.float32 if dtype == "float16" else torch.bfloat16
    tower = type(policy.backbone.visual)._from_config(config, dtype=used)
    pixels, grid = torch.randn(8 * 256, 1176), torch.tensor([[1, 16, 16]] * 8)
    with LiveBytes() as watch, torch.no_grad():
        tower(pixels.to(used, copy=True), grid)
    monkeypatch.setattr("finer1_lite.memory.PATCHES_AT_ONCE", 8 * 256)
    plan = Plan(**vars(replace(policy.profile, dtype=dtype)))
    close(made(encode(plan, policy.model.config)), watch.peak)


@pytest.mark.parametrize("prompts, n, new, phase", [(8, 1, 2, "prefill"), (2, 16, ROOM + 3, "decode")])
def test_rollouts(policy, seen, exact_prompts, monkeypatch, prompts, n, new, phase):
    profile = replace(policy.profile, rollout_batch=prompts * n, max_new_tokens=new)
    monkeypatch.setattr(policy, "profile", profile)
    asked = [(QUESTION, s) for s in seen[:prompts]]
    with LiveBytes() as watch:
        rollout(policy, asked, n, torch.Generator().manual_seed(0), temperature=1.0, top_p=0.99)
    phases = {k: made(v) for k, v in generate(policy.profile, policy.model.config, prompts, n).items()}
    assert phases[phase] == max(phases.values())
    close(phases[phase], watch.peak, above=1.25)  # rows that end early leave the batch


def test_sampling_from_a_wide_nucleus():
    logits = torch.zeros(16, 20_000, dtype=torch.bfloat16)
    with LiveBytes() as watch:
        sample_tokens(logits, 1.0, 0.99, torch.Generator().manual_seed(0))
    config = qwen_config("3B")
    config.text_config.vocab_size = 20_000
    close(generate(PROFILES["l4"], config, 16, 1)["decode"]["logits"], watch.peak + logits.nbytes, above=1.02)


def scored(policy, seen, questions, each, new):
    """Peak bytes of an update: two passes over `questions` x `each` completions of `new` tokens, backward."""
    ids = torch.randint(20, 1000, (questions * each, new), generator=torch.Generator().manual_seed(0))
    under = [[(QUESTION, s) for s in seen[i : i + questions] for _ in range(each)] for i in (0, 4)]
    policy.scoring_mode()
    with LiveBytes() as watch:
        anchor, negative = (completion_logps(policy, prompts, ids, torch.ones_like(ids)) for prompts in under)
        (anchor - negative).sum().backward()
    policy.model.eval()
    return watch.peak


@pytest.mark.parametrize("questions, each, new", [(1, 4, 60), (2, 3, 60), (1, 8, 60)])
def test_updates_with_checkpoints(policy, seen, exact_prompts, questions, each, new):
    passes = [(questions, exact_prompts + each * new)] * 2
    estimated = train(policy.profile, policy.model.config, passes, 2 * questions * each * new)
    close(made(estimated), scored(policy, seen, questions, each, new))


def test_updates_without_checkpoints(policy, seen, exact_prompts, monkeypatch):
    """There the prompt is read once and its cache repeated; the estimate is that of the packed rows."""
    monkeypatch.setattr(policy, "profile", replace(policy.profile, checkpointing=False))
    estimated = train(policy.profile, policy.model.config, [(1, exact_prompts + 240)] * 2, 480)
    close(made(estimated), scored(policy, seen, 1, 4, 60))


def test_a_chunk_of_logits():
    hidden = torch.randn(CHUNK, 8, dtype=torch.bfloat16, requires_grad=True)
    ids = torch.randint(4000, (CHUNK,))
    with LiveBytes() as watch:
        chunked_logps(hidden, torch.randn(4000, 8, dtype=torch.bfloat16), ids).sum().backward()
    config = qwen_config("3B")
    config.text_config.vocab_size = 4000
    config.text_config.num_hidden_layers = 1
    one = train(replace(PROFILES["l4"], lora_r=1), config, [(1, 1)], 1)
    close(one["logits"], watch.peak, above=1.05)


def test_sft(policy, seen, exact_prompts):
    rows = [(QUESTION, s, "a red bird " * n) for s, n in zip(seen, (60, 60, 60, 50))]
    policy.model.train()
    with LiveBytes() as watch:
        loss, answers = answer_loss(policy, rows)
        loss.backward()
    policy.model.eval()
    length = exact_prompts + len(policy.processor.tokenizer(rows[0][2])["input_ids"]) + 1
    close(made(train(policy.profile, policy.model.config, [(4, length)], answers)), watch.peak)


# ---- which rows of an update are heaviest


def packed(tokens=4096, rows=20, loss=None, new=400):
    """Passes of the L4's update with other limits."""
    l4 = PROFILES["l4"]
    tapo = replace(l4.tapo, micro_tokens=tokens, micro_batch=rows)
    profile = replace(l4, tapo=tapo, loss=loss or l4.loss)
    return update_passes(profile, qwen_config("3B"), new)


def test_a_whole_question_is_one_packed_row_under_anchor_and_negative():
    assert packed(tokens=10 * 400 + 2 * 256, rows=10) == ([(1, 356 + 10 * 400)] * 2, 2 * 10 * 400)


def test_without_a_negative_or_its_gradient_one_graph_waits():
    for loss in (DAPO, LossConfig(negative_grad=False)):
        passes, answers = packed(rows=10, loss=loss)
        assert len(passes) == 1 and answers == 8 * 400  # with two images of 256: the ninth row exceeds 4096


def test_under_their_own_images_anchor_and_positive_are_two_rows():
    loss = LossConfig(update_image="own", old_image="own", negative_grad=False)
    assert packed(tokens=10 * 400 + 2 * 256, rows=10, loss=loss)[0] == [(2, 356 + 5 * 400)]


def test_questions_that_do_not_fit_together_are_never_padded_to_each_other():
    assert packed(tokens=8192, rows=10, new=1024) == ([(1, 356 + 7 * 1024)] * 2, 2 * 7 * 1024)


def test_a_row_above_the_limit_still_stands_alone():
    assert packed(tokens=1)[0] == [(1, 356 + 400)] * 2


# ---- the whole


ALL = ["encode", "SFT", "prefill", "decode", "update", "evaluate"]
MORE = [
    ("max_pixels", 256 * 784, 4096 * 784, ALL), ("rollout_batch", 40, 80, ["prefill", "decode"]),
    ("max_new_tokens", 400, 1024, ["decode", "update", "evaluate"]), ("eval_batch", 16, 64, ["evaluate"]),
    ("chain_tokens", 1400, 1500, ["SFT"]), ("lora_r", 16, 32, ALL),
    ("tapo.micro_tokens", 1000, 4096, ["update"]), ("tapo.micro_batch", 10, 20, ["update"]),
    ("sft.micro_tokens", 4000, 4500, ["SFT"]), ("sft.micro_batch", 3, 4, ["SFT"]),
    ("dense_rollout", False, True, ["prefill", "decode", "evaluate"]), ("quantize", True, False, ALL),
    ("checkpointing", True, False, ["SFT", "update"]), ("offload_tower", True, False, ALL[1:]),
    ("dtype", "bfloat16", "float16", ["encode"]),
]  # fmt: skip


@pytest.mark.parametrize("field, less, more, phases", MORE, ids=[field for field, *_ in MORE])
def test_more_of_anything_needs_more_memory_where_it_is_used_and_nowhere_else(field, less, more, phases):
    """Rows limit the micro-batches here; under a limit of tokens, longer rows are fewer."""
    plan = Plan(**vars(PROFILES["l4"]))
    for limit, value in (("tapo.micro_batch", 10), ("sft.micro_batch", 4), ("tapo.micro_tokens", 10**6),
                         ("sft.micro_tokens", 10**6), (field, less)):  # fmt: skip
        plan = changed(plan, limit, value)
    before, after = (estimate(p, qwen_config("3B")) for p in (plan, changed(plan, field, more)))
    assert [phase for phase in ALL if sum(after[phase].values()) > sum(before[phase].values())] == phases
    assert [phase for phase in ALL if after[phase] != before[phase]] == phases


@pytest.mark.parametrize("field, more", [("max_new_tokens", 1024), ("max_pixels", 1280 * 784)])
def test_the_limit_of_tokens_keeps_an_update_of_longer_rows_about_as_large(field, more):
    plan = changed(changed(Plan(**vars(PROFILES["l4"])), "tapo.micro_batch", 100), "tapo.micro_tokens", 4096)
    first, second = (estimate(p, qwen_config("3B"))["update"] for p in (plan, changed(plan, field, more)))
    assert sum(second.values()) == pytest.approx(sum(first.values()), rel=0.15)


@pytest.mark.parametrize("name", ["t4", "l4", "a100", "h100"])
def test_every_profile_fits_its_card_at_448_pixels(name):
    check(PROFILES[name], qwen_config("3B"), memory.CARDS[name])


def lack(plan, card):
    return sum(lacks(estimate(plan, qwen_config("3B")), card).values())


HEAVY = {
    "max_pixels": 1280 * 784, "max_new_tokens": 1024, "rollout_batch": 160, "eval_batch": 128,
    "offload_tower": False, "checkpointing": False, "dense_rollout": True,
}  # fmt: skip


@pytest.mark.parametrize("card", [8, 14.56, 22])
def test_advice_that_is_followed_makes_it_fit(card):
    config, plan = qwen_config("3B"), Plan(**vars(replace(PROFILES["l4"], **HEAVY)))
    assert lack(plan, card)
    steps = advise(plan, config, card)
    for field, then in steps:  # each step changes its own field, and helps
        assert then == changed(plan, field, attrgetter(field)(then)) != plan
        assert lack(then, card) < lack(plan, card)
        plan = then
    assert not lack(plan, card)
    assert all(reserved(items) + CONTEXT <= card * GIB for items in estimate(plan, config).values())
    fields = [field for field, _ in steps]
    assert fields == [field for field, _ in LEVERS if field in fields] and "checkpointing" in fields


def test_results_are_not_touched_where_smaller_batches_are_enough():
    plan = Plan(**vars(replace(PROFILES["t4"], max_pixels=1280 * 784, rollout_batch=640)))
    assert {field for field, _ in advise(plan, qwen_config("3B"), 14.56)} == {"rollout_batch"}


def test_the_error_names_the_phase_the_field_and_the_saving():
    profile = replace(PROFILES["t4"], rollout_batch=640)
    with pytest.raises(MemoryError) as error:
        check(profile, qwen_config("3B"), 14.56)
    needed = reserved(estimate(Plan(**vars(profile)), qwen_config("3B"))["decode"]) / GIB
    assert f"Does not fit: decode reserves {needed:.1f} GiB" in str(error.value)
    assert "rollout_batch from 640 to" in str(error.value) and str(error.value).endswith("Then it fits.")
    assert f"decode {needed:.1f} ->" in str(error.value)


def test_where_nothing_helps_it_says_so():
    text, fits = report(PROFILES["t4"], qwen_config("3B"), card_gib=3)
    assert not fits and text.endswith("take a larger card.")


def test_the_table_adds_up():
    l4, config = PROFILES["l4"], qwen_config("3B")
    text, fits = report(l4, config, card_gib=22)
    assert fits
    lines = {line[:20].strip(): line[20:].split() for line in text.splitlines()}
    for column, items in enumerate(estimate(Plan(**vars(l4)), config).values()):
        total = sum(items.values()) / GIB
        assert float(lines["all tensors"][column]) == pytest.approx(total, abs=0.006)
        assert float(lines["reserved: +20%"][column]) == pytest.approx(1.2 * total, abs=0.006)
        shown = sum(float(lines[item][column]) for item, size in items.items() if size)
        assert shown == pytest.approx(total, abs=0.06)


def test_a_profile_without_a_known_card_asks_for_its_memory():
    if torch.cuda.is_available():
        pytest.skip("this machine's own card is taken")
    with pytest.raises(ValueError, match="card_gib"):
        report(replace(PROFILES["l4"], name="mine"), qwen_config("3B"))


def test_command_line(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["memory", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return capsys.readouterr().out, ended.value.code

    text, code = run("t4", "--image-tokens", "1280", "--new-tokens", "300", "--card-gib", "40")
    assert "300 tokens, images of 1280 tokens" in text and not code
    text, code = run("t4", "--image-tokens", "1280", "--card-gib", "8")
    assert "rollout_batch from 80 to 40" in text and code
