"""From logits or hidden states to the log-probs of given tokens (B rows, C tokens, V vocabulary); torch alone."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def fp32(x: Tensor) -> Tensor:
    """Half precision as fp32; fp32 and fp64 stay as they are (finite differences need fp64)."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def completion_mask(completion_ids: Tensor, eos_id: int) -> Tensor:
    """1 up to and including the first EOS, 0 behind it: (B, C) ids -> (B, C) int64. No EOS: all 1.

    The pad id is not looked at, so the EOS counts also where pad = EOS, and stopping is trained.
    """
    is_eos = (completion_ids == eos_id).long()
    return ((is_eos.cumsum(dim=1) - is_eos) == 0).long()


def selective_log_softmax(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probs of the given ids: (..., C, V) logits and (..., C) ids -> (..., C), in fp32 at least.

    logits[t] must be the prediction *for* ids[t], the model's output one position earlier.
    """
    logits = fp32(logits)
    chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(dim=-1)


def chunked_logps(
    hidden: Tensor, weight: Tensor, ids: Tensor, chunk_size: int = 256, temperature: float = 1.0
) -> Tensor:
    """Log-probs of ids from the backbone's hidden states; an (N, V) tensor never exists.

    hidden (N, H), weight (V, H) of the lm_head, ids (N,) -> (N,): `selective_log_softmax` of hidden @ weight.T /
    temperature, chunk_size rows at a time; the backward pass makes the logits of a chunk again.
    """

    def one_chunk(rows: Tensor, weight: Tensor, row_ids: Tensor) -> Tensor:
        return selective_log_softmax(fp32(rows @ weight.T) / temperature, row_ids)

    chunks = zip(hidden.split(chunk_size), ids.split(chunk_size), strict=True)
    return torch.cat([checkpoint(one_chunk, rows, weight, row_ids, use_reentrant=False) for rows, row_ids in chunks])
