"""Tool calls are read in the notation of each model's chat template, with and without its special tokens."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import FAMILIES, Family, folder, write_folder
from temp_folders import new_folder
from tokenizers import Tokenizer

from sdpo_mlx.models.chat_template import load_chat
from sdpo_mlx.tasks.tools.parse import read_calls
from sdpo_mlx.tasks.tools.task import ToolsTask
from sdpo_mlx.tasks.tools.values import Call, typed

SCHEMAS = {
    "f": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "wet": {"type": "boolean"},
            "x": {"type": ["number", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "at": {"type": "object", "properties": {"lat": {"type": "number"}, "name": {"type": "string"}}},
        },
    },
    "g.h": {"type": "object", "properties": {}},
}
F = Call("f", {"city": "Oslo", "days": 3})
G = Call("g.h")
XML = "<function=f>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>"


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f"<tool_call>\n{XML}\n</tool_call>\n<tool_call>\n<function=g.h>\n</function>\n</tool_call>", [F, G]),
        (f"I look.\n{XML}\n<function=g.h></function>", [F, G]),
        ("<function=f>\n<parameter=city>\nOslo\n<parameter=days>\n3\n</function>", [F]),
        ('<minimax:tool_call>\n<invoke name="f">\n<parameter name="city">Oslo</parameter>\n'
         '<parameter name="days">3</parameter>\n</invoke>\n</minimax:tool_call>', [F]),
        ('<function name="f"><param name="city">Oslo</param><param name="days">3</param></function>', [F]),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"city": "Oslo", "days": 3}}, {"name": "g.h"}]', [F, G]),
        ('[TOOL_CALLS]f[ARGS]{"city": "Oslo", "days": 3}[TOOL_CALLS]g.h[ARGS]{}', [F, G]),
        ('[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"city": "Oslo", "days": 3}', [F]),
        ('f{"city": "Oslo", "days": 3}g.h{}', [F, G]),
        ('<tool_call>[{"name": "f", "arguments": {"city": "Oslo", "days": 3}}, {"name": "g.h"}]</tool_call>', [F, G]),
        ('<|tool_call|>[{"name": "f", "arguments": {"city": "Oslo", "days": 3}}]<|/tool_call|>', [F]),
        ('{"tool_calls": [{"id": "1", "type": "function", "function":'
         ' {"name": "f", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 3}"}}]}', [F]),
        ('{"tool_calls": []}', []),
        ('{"tool_calls": null}', []),
        ('<|python_tag|>{"name": "f", "parameters": {"city": "Oslo", "days": 3}}', [F]),
        ('<|tool_call_start|>[f(city="Oslo", days=3), g.h()]<|tool_call_end|>', [F, G]),
        ("[f(city='Oslo', days=3)]", [F]),
        ('<|tool_call>call:f{city:<|"|>Oslo<|"|>,days:3}<tool_call|><|tool_call>call:g.h{}<tool_call|>', [F, G]),
        ("call:f{city:Oslo,days:3}", [F]),
        ("<start_function_call>call:f{city:<escape>Oslo<escape>,days:3}<end_function_call>", [F]),
        ('<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.f '
         '<|constrain|>json<|message|>{"city": "Oslo", "days": 3}<|call|>', [F]),
        (' to=functions.f<|channel|>commentary json<|message|>{"city": "Oslo", "days": 3}', [F]),
        ('commentary to=functions.f json{"city": "Oslo", "days": 3}', [F]),
        (' to=functions.fcommentary json{"city": "Oslo", "days": 3}', [F]),
        ("<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n"
         "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>g.h\n</tool_call>", [F, G]),
        ('functions.f:0<|tool_call_argument_begin|>{"city": "Oslo", "days": 3}<|tool_call_end|>', [F]),
        ('<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"city": "Oslo", "days": 3}\n```', [F]),
        ('<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"city": "Oslo", "days": 3}<｜tool▁call▁end｜>', [F]),
        ('{"name": "g.h", "arguments": null}', [G]),
        ('{"name": "g.h", "arguments": ""}', [G]),
        ('{"name": "g.h", "arguments": {}}', [G]),
        ('{"name": "g.h", "parameters": "null"}', [G]),
        ("[TOOL_CALLS]g.h[ARGS]null", [G]),
        ('[TOOL_CALLS]g.h[ARGS]""', [G]),
        ("<think>call:f{}</think>\n[g.h()]", [G]),
    ],
)  # fmt: skip
def test_calls_are_read_in_every_notation(text, calls):
    assert list(read_calls(text, "json", SCHEMAS)) == calls


@pytest.mark.parametrize("nothing", ["{}", "null", '""', '" "'])
def test_action_without_arguments_may_say_so(nothing):
    assert read_calls(f"Action: g.h\nAction Input: {nothing}", "actions", SCHEMAS) == (G,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[f('Oslo')]", "no names"),
        ("[f(city=open('x'))]", "no constants"),
        ("[f(city=", "malformed"),
        ("[f(city=b'x')]", "no constants"),
        ("call:f{city", "malformed"),
        ("call:f{city:<escape>Oslo,days:3}", "malformed"),
        ('f[ARGS]{"city": }', "malformed"),
        ("<function=f><parameter=city>a</parameter><parameter=city>b</parameter></function>", "stands twice"),
        ('{"tool_calls": [1]}', "no JSON object with a name"),
    ],
)
def test_calls_that_cannot_be_read_say_why(text, said):
    (call,) = read_calls(text, "json", SCHEMAS)
    assert said in call.fault


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("3", {"type": "string"}, "3"),
        ("null", {"type": "string"}, "null"),
        ("3", {"type": "integer"}, 3),
        ("3.0", {"type": "integer"}, 3.0),
        (" True ", {"type": "boolean"}, True),
        ("yes", {"type": "boolean"}, "yes"),
        ("3", {"type": "boolean"}, "3"),
        ("null", {"type": ["number", "null"]}, None),
        ("null", {"type": "number"}, None),
        ('["a"]', {"type": "array"}, ["a"]),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("{a}", {"type": "object"}, "{a}"),
        ("2", {"enum": [1, 2]}, 2),
        ("2", {"enum": ["1", "2"]}, "2"),
        ("2", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 2),
        ("2", None, "2"),
        ("2", {}, 2),
        ("1e999", {"type": "number"}, "1e999"),
    ],
)
def test_values_without_quotes_get_the_types_of_the_schema(text, schema, value):
    found = typed(text, schema)
    assert (found, type(found)) == (value, type(value))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["<tool_call>", "</tool_call>", "<function=f>", "<parameter=a>", "[TOOL_CALLS]", "f[ARGS]", "{"]
        )
        | st.sampled_from(
            ["call:f{", "a:", "<escape>", "[f(", "a=", "]", "}", ")", ",", '"', "to=functions.f ", "\n", "1"]
        )
        | st.text(max_size=4),
        max_size=25,
    ).map("".join)
)
def test_any_text_is_read_without_an_error(text):
    for call in read_calls(text, "json", SCHEMAS):
        assert call.fault or (isinstance(call.name, str) and isinstance(call.arguments, dict))
        json.dumps(dict(call.arguments), allow_nan=True)


NAME = "{{- '%s' ~ call.function.name ~ '%s' }}"
TEMPLATES = {  # how each family's template writes the call of an assistant
    "hermes": "{{- '<tool_call>\n' ~ call.function | tojson ~ '\n</tool_call>' }}",
    "xml": NAME % ("<tool_call>\n<function=", ">\n") + "{%- for key, value in call.function.arguments | items %}"
    "{{- '<parameter=' ~ key ~ '>\n' ~ value ~ '\n</parameter>\n' }}{%- endfor %}"
    "{{- '</function>\n</tool_call>' }}",
    "glm": NAME % ("<tool_call>", "") + "{%- for key, value in call.function.arguments.items() %}"
    "{{- '\n<arg_key>' ~ key ~ '</arg_key>\n<arg_value>' ~ value ~ '</arg_value>' }}{%- endfor %}{{- '</tool_call>' }}",
    "mistral": NAME % ("[TOOL_CALLS]", "[ARGS]") + "{{- call.function.arguments | tojson }}",
    "mistral7": "{{- '[TOOL_CALLS] [' ~ call.function | tojson ~ ']' }}",
    "harmony": NAME % ("<|start|>assistant to=functions.", "<|channel|>commentary json<|message|>")
    + "{{- call.function.arguments | tojson ~ '<|call|>' }}",
    "gemma": NAME
    % ("<|tool_call>call:", "{")
    + "{%- for key, value in call.function.arguments | dictsort %}{{- ',' if not loop.first }}{{- key ~ ':' }}"
    "{{- '<|\"|>' ~ value ~ '<|\"|>' if value is string else value }}{%- endfor %}{{- '}<tool_call|>' }}",
    "lfm2": NAME
    % ("<|tool_call_start|>[", "(")
    + "{%- for key, value in call.function.arguments | items %}{{- ', ' if not loop.first }}"
    "{{- key ~ '=' ~ value | tojson }}{%- endfor %}{{- ')]<|tool_call_end|>' }}",
    "text": "{{- '{\"name\": \"' ~ call.function.name ~ '\", \"arguments\": ' ~ call.function.arguments ~ '}' }}"
    "{%- if call.function.arguments is not string %}{{- raise_exception('not a string') }}{%- endif %}",
    "unknown": NAME % ("@@", "@@") + "{{- call.function.arguments | length }}",
    "silent": "",
}
TOKENS = ("[TOOL_CALLS]", "[ARGS]", "<|start|>", "<|channel|>", "<|message|>", "<|call|>", '<|"|>')
CALL_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_run_warns_if_the_templates_notation_cannot_be_read(name, special):
    template = (
        "{%- if tools %}{{- tools | tojson }}{%- endif %}"
        "{%- for m in messages %}{{- '<|im_start|>' ~ m.role ~ '\n' ~ m.content }}"
        "{%- for call in m.tool_calls or [] %}" + TEMPLATES[name] + "{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"
    )
    added = (*TOKENS, *CALL_TOKENS)
    family = Family(template, FAMILIES["tiny"].special + (added if special else ()), () if special else added)
    tokenizer = Tokenizer.from_file(str(folder("tiny") / "tokenizer.json"))
    tokenizer.add_special_tokens(list(family.special))
    tokenizer.add_tokens(list(family.plain_added))
    path = new_folder(f"calls-{name}-{special}")
    write_folder(path, tokenizer, Family(template, family.special, family.plain_added, None, "<|im_end|>"))
    warnings = ToolsTask(variant="json").warnings(load_chat(path))
    assert bool(warnings) == (name == "unknown")
    assert all("tools:json" in line and not re.search(r"\n", line) for line in warnings)
    assert not ToolsTask().warnings(load_chat(path))
