"""Cutting work into parts that fit into memory."""

import gc
import warnings
from collections.abc import Callable

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's or this machine's memory is full."""
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # the CPU's, CUDA's, cuBLAS's
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(w in str(error) for w in words)


def halved_until_it_fits(run: Callable[[int], object], size: int, what: str):
    """`run(size)`, out of memory with half of it, and so on: (result, size that fits). MemoryError if 1 does not."""
    fits = size
    while True:
        try:
            result = run(fits)
            break
        except Exception as error:
            if not out_of_memory(error):
                raise
            if fits == 1:
                advice = "lower max_new_tokens or max_pixels of the profile, or take a larger card"
                raise MemoryError(f"{what}: even 1 does not fit; {advice}") from error
        fits //= 2
        gc.collect()  # 4-bit models refer to themselves: one that was let go may still be on the card
        torch.cuda.empty_cache()
    if fits != size:
        warnings.warn(f"out of memory: {what} lowered from {size} to {fits}", RuntimeWarning, stacklevel=2)
    return result, fits


def cut(costs: list[int], limit: int, rows: int, group: int = 1) -> list[range]:
    """Consecutive rows in parts whose costs sum to `limit` at most and that have `rows` rows at most.

    Whole groups of `group` rows stay together, as rows of two groups would be padded to the longer of their packed
    rows; a group, or a row, that is too large by itself stands alone.

    >>> cut([3, 3, 3, 9, 1], limit=6, rows=10), cut([2] * 8, limit=6, rows=10, group=4)
    ([range(0, 2), range(2, 3), range(3, 4), range(4, 5)], [range(0, 3), range(3, 4), range(4, 7), range(7, 8)])
    """
    parts, start, spent = [], 0, 0
    if group > 1:
        whole = [sum(costs[i : i + group]) for i in range(0, len(costs), group)]
        for part in cut(whole, limit, max(1, rows // group)):
            start, own = part.start * group, costs[part.start * group : part.stop * group]
            inside = cut(own, limit, rows) if len(part) == 1 else [range(len(own))]
            parts += [range(start + p.start, start + p.stop) for p in inside]
        return parts
    for i, cost in enumerate(costs):
        if i > start and (spent + cost > limit or i - start == rows):
            parts.append(range(start, i))
            start, spent = i, 0
        spent += cost
    return parts + [range(start, len(costs))] if costs else []
