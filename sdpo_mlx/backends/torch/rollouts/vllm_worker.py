"""Samples with vLLM, in a process and an environment of its own: `vllm_engine.py` starts `PYTHON -I vllm_worker.py`.

Imports only the standard library, numpy, safetensors and vllm: its versions of torch and transformers are not ours.
Reads requests from standard input and writes replies to standard output: 8 bytes of length, then a message, which is
8 bytes of the length of its JSON, the JSON, and safetensors (`distributed/serialization.py` reads and writes the same).

    open      model, dtype, rank, length, memory            -> ok
    adapter   folder, version                               -> ok
    generate  sampling, seeds; the prompts                  -> one message for each rollout as it ends, then done
    sleep, wake                                             -> ok

A failed request is answered by `error`. The process ends when its input is closed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Protocol

import numpy as np
from safetensors.numpy import load, save

SIZE = 8  # bytes of a length
Arrays = Mapping[str, Any]


class Sampler(Protocol):
    """What `serve` asks."""

    def open(self, model: str, dtype: str, rank: int, length: int, memory: float | None) -> None:
        """Load the base, for adapters up to a rank and sequences up to a length, in a share of the device's memory."""

    def adapter(self, folder: str, version: int) -> None:
        """Sample with this adapter (PEFT's layout) from now on."""

    def generate(
        self, prompts: list[list[int]], sampling: Mapping[str, Any], seeds: list[list[int]]
    ) -> Iterator[tuple[int, int, list[int], list[float], str]]:
        """Yield prompt, index, ids, their log-probs and `stop` or `length` of each rollout as it ends."""

    def sleep(self) -> None:
        """Leave the device's memory to others."""

    def wake(self) -> None:
        """Take the memory back."""


def serve(sampler: Sampler, source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until the source is closed."""
    while (request := read(source)) is not None:
        plain, arrays = request
        try:
            if plain["op"] == "generate":
                prompts = [arrays[str(at)].tolist() for at in range(len(plain["seeds"]))]
                for at, n, ids, logps, finish in sampler.generate(prompts, plain["sampling"], plain["seeds"]):
                    found = {"ids": np.array(ids, np.int32), "logps": np.array(logps, np.float32)}
                    write(sink, {"at": at, "n": n, "finish": finish}, found)
                write(sink, {"done": True})
            else:
                call: Callable[..., None] = getattr(sampler, plain.pop("op"))
                call(**plain)
                write(sink, {"ok": True})
        except Exception as error:  # whatever a library raises: the other side reports it
            write(sink, {"error": f"{type(error).__name__}: {error}"})


def read(source: BinaryIO) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The next message; None if the source was closed."""
    head = source.read(SIZE)
    if len(head) < SIZE:
        return None
    message = source.read(int.from_bytes(head, "little"))
    end = SIZE + int.from_bytes(message[:SIZE], "little")
    return json.loads(message[SIZE:end]), load(message[end:])


def write(sink: BinaryIO, plain: Any, arrays: Arrays | None = None) -> None:
    """Write one message."""
    text = json.dumps(plain).encode()
    message = len(text).to_bytes(SIZE, "little") + text + save(dict(arrays or {}))
    sink.write(len(message).to_bytes(SIZE, "little") + message)
    sink.flush()


class VLLM:
    """vLLM's synchronous engine. Not run by the authors of this file: see docs/cuda.md."""

    def __init__(self) -> None:
        self.llm: Any = None
        self.lora: Any = None

    def open(self, model: str, dtype: str, rank: int, length: int, memory: float | None) -> None:
        """See `Sampler.open`."""
        from vllm import LLM

        ranks = (8, 16, 32, 64, 128, 256, 512)  # that vLLM allows
        self.llm = LLM(
            model=model,
            dtype=dtype,
            max_model_len=length,
            trust_remote_code=False,
            generation_config="vllm",  # the folder's own would change the distribution
            enable_lora=True,
            max_loras=1,
            max_lora_rank=next((each for each in ranks if each >= rank), rank),
            enable_sleep_mode=True,
            logprobs_mode="processed_logprobs",  # at the temperature, as the loss has them
            **({"gpu_memory_utilization": memory} if memory else {}),
        )

    def adapter(self, folder: str, version: int) -> None:
        """See `Sampler.adapter`; a new number, under which no prefix is cached yet."""
        from vllm.lora.request import LoRARequest

        before, self.lora = self.lora, LoRARequest(f"student-{version}", version, folder)
        if before is not None:
            self.llm.llm_engine.remove_lora(before.lora_int_id)
        self.llm.llm_engine.add_lora(self.lora)
        self.llm.reset_prefix_cache()

    def generate(
        self, prompts: list[list[int]], sampling: Mapping[str, Any], seeds: list[list[int]]
    ) -> Iterator[tuple[int, int, list[int], list[float], str]]:
        """See `Sampler.generate`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self.llm.llm_engine
        for at, own in enumerate(seeds):
            for n, seed in enumerate(own):
                params = SamplingParams(
                    max_tokens=sampling["max_tokens"],
                    temperature=sampling["temperature"],
                    top_p=sampling["top_p"],
                    stop_token_ids=sampling["eos_ids"],
                    ignore_eos=True,  # only the ids above end a rollout
                    seed=seed % 2**63,
                    logprobs=0,  # of the sampled token alone
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                engine.add_request(f"{at}.{n}", {"prompt_token_ids": prompts[at]}, params, lora_request=self.lora)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    at, n = map(int, output.request_id.split("."))
                    found = output.outputs[0]
                    ids = list(found.token_ids)
                    logps = [row[i].logprob for row, i in zip(found.logprobs, ids, strict=True)]
                    yield at, n, ids, logps, "length" if found.finish_reason == "length" else "stop"

    def sleep(self) -> None:
        """See `Sampler.sleep`: the weights wait in the computer's memory, the cache is dropped."""
        self.llm.sleep(level=1)

    def wake(self) -> None:
        """See `Sampler.wake`."""
        self.llm.wake_up()


def pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output as they are now; what a library prints from here on goes to standard error."""
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, sink


if __name__ == "__main__":
    serve(VLLM(), *pipes())
