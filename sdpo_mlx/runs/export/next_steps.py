"""The next commands for an exported model, by tool: sdpo, mlx-lm, LM Studio, Ollama, vllm, llama.cpp."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sdpo_mlx.models.resolve import ResolvedModel
from sdpo_mlx.rl.components import Components
from sdpo_mlx.rl.metrics import TRUNCATED_MOST

Steps = Mapping[str, str]  # tool: command
Formats = Collection[str]  # those that a run can be exported to

QUESTION = '--prompt "..."'
LM_STUDIO = "~/.lmstudio/models/sdpo"
MAX_PROMPT = 200  # characters of a problem that still make a readable example command
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values that vllm accepts


def for_mlx(base: str, adapter: Path) -> Steps:
    """Return the commands for an adapter in mlx-lm's layout."""
    model, path = shlex.quote(base), shlex.quote(str(adapter))
    fused = shlex.quote(f"{adapter}-fused")
    return {
        "sdpo": f"sdpo chat {model} --adapter {path} --compare",
        "mlx-lm": f"mlx_lm.generate --model {model} --adapter-path {path} {QUESTION}",
        "LM Studio": f"mlx_lm.fuse --model {model} --adapter-path {path} --save-path {fused}",
    }


def for_peft(
    run: Path, folder: Path, settings: Mapping[str, Any], *, model: ResolvedModel, auto_class: str, formats: Formats
) -> Steps:
    """Return the commands for an adapter in PEFT's layout with this `adapter_config.json`.

    `model` is its base, which transformers opens with `auto_class`.
    """
    path, base = shlex.quote(str(folder)), settings["base_model_name_or_path"]
    here = str(model.path) if model.source == "fetched" else base  # the copy on this machine, instead of the hub's
    load = f"from peft import AutoPeftModelForCausalLM as A; A.from_pretrained({str(folder)!r})"
    if here != base or auto_class != "AutoModelForCausalLM":
        load = (
            f"from peft import PeftModel as P; from transformers import {auto_class} as A; "
            f"P.from_pretrained(A.from_pretrained({here!r}), {str(folder)!r})"
        )
    named = shlex.quote(f"{run.resolve().name}={folder}")
    rank = next((each for each in VLLM_RANKS if each >= int(settings["r"])), None)
    served = f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {rank} --lora-modules {named}"
    steps = {"PEFT": f"python -c {shlex.quote(load)}"}
    if not settings.get("use_dora") and rank is not None:
        steps["vllm"] = served
    elif "fused" in formats:
        steps["vllm"] = f"sdpo export {shlex.quote(str(run))} --to fused"
    if "gguf" in formats:
        steps["LM Studio, Ollama"] = f"sdpo export {shlex.quote(str(run))} --to gguf"
    elif "fused" in formats:
        steps["LM Studio"] = f"sdpo export {shlex.quote(str(run))} --to fused"
    return {**steps, "back here": f"sdpo export {path} --to mlx --model {shlex.quote(base_name(model))}"}


def for_fused(run: Path, folder: Path, *, quantized: bool, formats: Formats) -> Steps:
    """Return the commands for a fused model."""
    path, home = shlex.quote(str(folder)), f"{LM_STUDIO}/{shlex.quote(folder.resolve().name)}"
    ollama = {"Ollama": f"sdpo export {shlex.quote(str(run))} --to gguf"} if "gguf" in formats else {}
    return {
        "sdpo": f"sdpo serve {path}",
        "mlx-lm": f"mlx_lm.generate --model {path} {QUESTION}",
        "LM Studio": f"mkdir -p {LM_STUDIO} && cp -R {path} {home}",
        **ollama,
        "vllm": f"sdpo export {shlex.quote(str(run))} --to fused" if quantized else f"vllm serve {path}",
    }


def for_gguf(run: Path, file: Path) -> Steps:
    """Return the commands for a GGUF with its Modelfile beside it."""
    path = shlex.quote(str(file))
    return {
        "llama.cpp": f"llama-cli -m {path}",
        "LM Studio": f"lms import {path}",
        "Ollama": _ollama(run, file),
        "mlx-lm": f"sdpo export {shlex.quote(str(run))} --to fused",
    }


def for_gguf_lora(run: Path, file: Path) -> Steps:
    """Return the commands for a LoRA for a GGUF of the same base, with its Modelfile beside it."""
    return {"llama.cpp": f"llama-cli -m BASE.gguf --lora {shlex.quote(str(file))}", "Ollama": _ollama(run, file)}


def _ollama(run: Path, file: Path) -> str:
    name = ollama_name(run.resolve().name)
    return f"ollama create {name} -f {shlex.quote(str(file.with_name('Modelfile')))} && ollama run {name}"


def ollama_name(name: str) -> str:
    """Return a name that Ollama accepts: lower-case ASCII letters, digits, `.`, `-`, `_`, at most 80.

    It starts with a letter or digit; other characters become `-`, accents are dropped.
    """
    letters = [each for each in unicodedata.normalize("NFKD", name) if not unicodedata.combining(each)]
    plain = re.sub(r"[^a-z0-9._-]+", "-", "".join(letters).lower())
    return plain.strip("-._")[:80].rstrip("-._") or "sdpo"


def base_name(model: ResolvedModel) -> str:
    """Return the name by which other programs load the base: its hub repository or its folder."""
    return model.target.partition("@")[0] if model.source == "hub" else str(model.path)


def next_commands(components: Components, out: Path, *, learned: bool, truncated: float) -> list[str]:
    """Return the commands to try on a finished run.

    If it learned: report, chat, mlx-lm. Otherwise those that show why not: what the model wrote, whether the
    self-teacher knows more, and longer rollouts if more than `TRUNCATED_MOST` of them are truncated.
    """
    run, base = shlex.quote(str(out)), shlex.quote(base_name(components.model))
    if not learned:
        longer = f"sdpo train -c {run} --max-tokens {2 * components.cfg.rollout.max_tokens} --out {run}-longer"
        why = longer if truncated > TRUNCATED_MOST else f"sdpo probe -c {run}"
        return [f"sdpo rollout --run {run}", why, f"sdpo report {run}"]
    problems = components.task.problems("held_out") or components.task.problems("train")
    prompt = problems[0].messages[-1]["content"].strip()
    fits = len(prompt) <= MAX_PROMPT and prompt.isprintable()
    first_steps = components.cfg.model.name == "tiny" and components.cfg.task.name.startswith("tiny")
    return [
        f"sdpo report {run}",
        f"sdpo chat {run} --compare",
        f"mlx_lm.generate --model {base} --adapter-path {run} --prompt {shlex.quote(prompt if fits else '...')}",
        *(["sdpo solve --model tiny --task tiny:hard"] if first_steps else []),
    ]
