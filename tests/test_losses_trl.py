"""TRL as an oracle: with gamma = eta = 0 our loss is that of a real `GRPOTrainer`, in value and gradient."""

import warnings

import pytest
import torch

from finer1_lite import logprobs as P
from finer1_lite import losses as L

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

ROWS, TOKENS, LENGTH = 6, 7, 7  # LENGTH: max_completion_length, the constant of Dr. GRPO
CLIP = {"gamma": 0.0, "eta1": 0.0, "eta2": 0.0}
CONFIGS = {
    "grpo": L.LossConfig(**CLIP, aggregation="sequence"),
    "bnpo": L.LossConfig(**CLIP, aggregation="token"),  # the mean of the local batch
    "dr_grpo": L.LossConfig(**CLIP, aggregation="constant", constant_length=LENGTH),
    "dapo": L.LossConfig(**CLIP, aggregation="token"),  # the mean of the whole step
}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", *"abcdefghijklmnop"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0,
        eos_token_id=1, initializer_range=0.3,
    )).double()
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), max_completion_length=LENGTH, num_generations=2,
        per_device_train_batch_size=2, epsilon=0.2, epsilon_high=0.28, beta=0.0, report_to="none",
        use_cpu=True, bf16=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = trl.GRPOTrainer(
            model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=arguments,
            train_dataset=datasets.Dataset.from_dict({"prompt": ["a b", "c d"]}), processing_class=tokenizer,
        )
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    return made


def make_batch(seed):
    """What TRL's `_compute_loss` reads, with ratios beyond every clip bound; prompt of 3 tokens."""
    g = torch.Generator().manual_seed(seed)
    mask = (torch.arange(TOKENS) < torch.randint(1, TOKENS + 1, (ROWS, 1), generator=g)).long()
    return {
        "prompt_ids": torch.randint(2, 18, (ROWS, 3), generator=g),
        "prompt_mask": torch.ones(ROWS, 3, dtype=torch.long),
        "completion_ids": torch.randint(2, 18, (ROWS, TOKENS), generator=g), "completion_mask": mask,
        "advantages": L.group_advantages(torch.rand(ROWS, generator=g, dtype=torch.float64), 2),
        "old_per_token_logps": -3 * torch.rand(ROWS, TOKENS, generator=g, dtype=torch.float64),
        "num_items_in_batch": mask.sum(),
    }


def their_loss(trainer, batch, loss_type, logps=None, monkeypatch=None):
    trainer.loss_type = loss_type
    if logps is not None:
        given = (logps, torch.zeros_like(logps), None)
        monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", lambda *_, **__: given)
    return trainer._compute_loss(trainer.model, batch)


def given_logps(batch, seed):
    noise = torch.randn(ROWS, TOKENS, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64)
    return (batch["old_per_token_logps"] + 0.5 * noise).requires_grad_()


def our_loss(logps, batch, config, rows=slice(None), num_items=None):
    rest = (batch[name][rows] for name in ("old_per_token_logps", "advantages", "completion_mask"))
    return L.tapo_loss(logps[rows], *rest, config=config, num_items=num_items)


@pytest.mark.parametrize("loss_type", CONFIGS)
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradient_on_the_same_tensors(trainer, monkeypatch, loss_type, seed):
    batch = make_batch(seed)
    logps = given_logps(batch, seed)
    theirs = their_loss(trainer, batch, loss_type, logps, monkeypatch=monkeypatch)
    ours, metrics = our_loss(logps, batch, CONFIGS[loss_type])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss, logps)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert gradients[0].abs().sum() > 0 and metrics["clip_ratio_low"] + metrics["clip_ratio_high"] > 0


@pytest.mark.parametrize("loss_type, how", [("dapo", "token"), ("grpo", "sequence"), ("dr_grpo", "constant")])
def test_gradient_accumulation(trainer, monkeypatch, loss_type, how):
    batch = make_batch(9)
    logps = given_logps(batch, 9)
    config, items = CONFIGS[loss_type], L.count_items(batch["completion_mask"], how)
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", 3)
    monkeypatch.setattr(trainer.args, "steps_per_generation", 3)
    theirs = ours = 0.0
    for rows in (slice(0, 2), slice(2, 4), slice(4, 6)):
        part = {name: value if value.dim() == 0 else value[rows] for name, value in batch.items()}
        theirs = theirs + their_loss(trainer, part, loss_type, logps[rows], monkeypatch=monkeypatch)
        ours = ours + our_loss(logps, batch, config, rows, items)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss, logps)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours, our_loss(logps, batch, config)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss_type", CONFIGS)
def test_end_to_end_through_a_model(trainer, loss_type):
    batch, model = make_batch(5), trainer.model
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    seen = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)

    def ours():
        hidden = model.model(input_ids=ids, attention_mask=seen).last_hidden_state[:, 2:-1]
        rows, ids_of_rows = hidden.flatten(0, 1), batch["completion_ids"].flatten()
        flat = P.chunked_logps(rows, model.lm_head.weight, ids_of_rows, chunk_size=10)
        return our_loss(flat.view(ROWS, TOKENS), batch, CONFIGS[loss_type])[0]

    losses = [ours(), their_loss(trainer, batch, loss_type)]
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert all(g.abs().sum() > 0 for g in gradients[0])
