"""Replies that are JSON of a schema: llguidance names the tokens that may come next."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from sdpo_mlx.backends.serving.jobs import Grammar
from sdpo_mlx.backends.serving.requests import ApiError
from sdpo_mlx.models.chat_template import Chat


@lru_cache(maxsize=2)
def _tokenizer(chat: Chat, vocab_size: int) -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer(chat.serialized(), n_vocab=vocab_size, eos_token=sorted(chat.eos_ids))


class JsonGrammar:
    """The grammar of one reply."""

    def __init__(self, matcher: Any, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self._matcher, self._consumed = matcher, 0
        self._end_V = np.isin(np.arange(vocab_size), sorted(eos_ids))

    def __call__(self, ids: list[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """See `Grammar`."""
        self._matcher.consume_tokens(ids[self._consumed :])
        self._consumed = len(ids)
        if self._matcher.is_stopped() or self._matcher.is_error():
            return self._end_V
        return np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)[: self._end_V.size] > 0


def json_grammar(chat: Chat, vocab_size: int, schema: str) -> Callable[[], Grammar]:
    """Return what makes the grammar of one reply; raise ApiError 400 for a schema that is not supported."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        message = "JSON replies need llguidance where the server runs: pip install 'sdpo-mlx[serve]'"
        raise ApiError(400, message, "response_format") from None
    # Small models may write white space for ever if the grammar lets them.
    options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(json.loads(schema) | {"x-guidance": options}))
        tokenizer = _tokenizer(chat, vocab_size)
        fault = LLMatcher(tokenizer, grammar).get_error()
    except Exception as error:  # of a schema by the client, or of a tokenizer of an unknown kind
        fault = str(error)
    if fault:
        raise ApiError(400, f"response_format: {' '.join(fault.split())[:300]}", "response_format")
    return lambda: JsonGrammar(LLMatcher(tokenizer, grammar), vocab_size, chat.eos_ids)
