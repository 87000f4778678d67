"""Choose a model's chat template: its own, the plain layout of base models, or one that the user gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.tokenizer import opening_ids
from sdpo_mlx.models.traced_template import TracedTemplate

MAX_BYTES = 1 << 20  # the largest templates of known models have 30 kB
WHERE = "model.chat_template"
# Runs record the word `plain`, so these two never change. The answer mark ends without a space: in most vocabularies
# the space belongs to the token of the first word.
PLAIN_LAYOUT = (
    "{%- for message in messages %}"
    "{%- if message.role == 'system' %}{{- message.content | trim + '\\n\\n' }}"
    "{%- elif message.role == 'user' %}{{- 'User: ' + message.content | trim + '\\n\\n' }}"
    "{%- else %}{{- 'Assistant: ' + message.content | trim + '\\n\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"
)
PLAIN_STOP = "\nUser:"  # base models continue with the next question
WITHOUT_TEMPLATE = (
    "the model has no chat template, so prompts use the plain layout (`User: ... Assistant:`); "
    "for another one set model.chat_template to a Jinja file"
)


@dataclass(frozen=True)
class TemplateSource:
    """The templates of a model, for prompts without and with tools.

    `setting` is the value of `model.chat_template` that gives them again, without any file; `own` means the model's;
    `stop` is a text at which answers end, beside the end tokens; `warnings` are for the user, one line each.
    """

    texts: tuple[str, str]
    setting: str
    own: bool = False
    stop: str = ""
    warnings: tuple[str, ...] = ()


def template_source(tokenizer: Any, setting: str, folder: str) -> TemplateSource:
    """Return the templates for a value of `model.chat_template`: `auto`, `plain`, a Jinja file or its text.

    Raises ConfigError if the file cannot be read, the template is not valid, or the model has several and no default.
    """
    if setting == "auto" and tokenizer.chat_template:
        try:  # few models have a second template, for prompts with tools
            texts = str(tokenizer.get_chat_template()), str(tokenizer.get_chat_template(tools=[{}]))
        except ValueError as error:
            fix = f"set {WHERE} to the Jinja file of one of them"
            raise ConfigError("the model has several chat templates and no default", where=folder, fix=fix) from error
        stop = PLAIN_STOP if texts[0].endswith(PLAIN_LAYOUT) else ""  # an export with the plain layout
        return TemplateSource(texts, setting, own=True, stop=stop)
    if setting in ("auto", "plain"):
        begins = opening_ids(tokenizer)[:1] == (tokenizer.bos_token_id,)
        text = ("{{- bos_token }}" if begins else "") + PLAIN_LAYOUT
        warnings = (WITHOUT_TEMPLATE,) if setting == "auto" else ()
        return TemplateSource((text, text), "plain", stop=PLAIN_STOP, warnings=warnings)
    text = template_text(setting)
    try:
        TracedTemplate(text, {})
    except TemplateError as error:
        where = WHERE if text == setting else f"{setting}:{getattr(error, 'lineno', None) or 1}"
        fix = "write a Jinja chat template, as tokenizers of transformers have"
        raise ConfigError(f"not a valid Jinja template: {error}", where=where, fix=fix) from error
    return TemplateSource((text, text), text)


def is_file_name(setting: str) -> bool:
    """Return whether a value of `model.chat_template` names a file."""
    return setting not in ("auto", "plain") and not ("{{" in setting or "{%" in setting)


def template_text(setting: str) -> str:
    """Return the text of a Jinja file, or the setting itself if it is such a text; raises ConfigError."""
    if not is_file_name(setting):
        return setting
    fix = f"set {WHERE} to auto, plain or the path of a Jinja file"
    try:
        with Path(setting).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(
            f"the chat template cannot be read: {reason}", where=f"{WHERE}: {setting}", fix=fix
        ) from error
    if len(content) > MAX_BYTES or is_file_name(text):
        large = len(content) > MAX_BYTES
        what = f"the chat template is larger than {MAX_BYTES} bytes" if large else "the file is no Jinja template"
        raise ConfigError(what, where=f"{WHERE}: {setting}", fix=fix)
    return text
