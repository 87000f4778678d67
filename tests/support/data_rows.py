"""Good and malformed JSONL rows of the task code."""

from __future__ import annotations

GOOD = b'{"id": "%d", "text": "fine"}\n'
MALFORMED: dict[str, tuple[bytes, str]] = {
    "cut_object": (b'{"id": "x", "text": ', "not JSON"),
    "cut_string": (b'{"id": "x', "not JSON"),
    "single_quotes": (b"{'id': 'x'}", "not JSON"),
    "trailing_comma": (b'{"id": "x",}', "not JSON"),
    "two_objects": (b'{"id": "x"} {"id": "y"}', "not JSON"),
    "no_json": (b"hello", "not JSON"),
    "control_character": (b'{"id": "x\x01"}', "not JSON"),
    "nul_byte": (b'\x00{"id": "x"}', "not JSON"),
    "bad_escape": (b'{"id": "\\x41"}', "not JSON"),
    "lone_cr_between_objects": (b'{"id": "x"}\r{"id": "y"}', "not JSON"),
    "bom_inside": (b'\xef\xbb\xbf{"id": "x"}', "not JSON"),
    "nan": (b'{"id": "x", "text": NaN}', "NaN"),
    "infinity": (b'{"id": "x", "text": [-Infinity]}', "-Infinity"),
    "overflow": (b'{"id": "x", "text": 1e999}', "1e999"),
    "endless_number": (b'{"id": "x", "text": ' + b"9" * 5000 + b"}", "too many digits"),
    "duplicate_key": (b'{"id": "x", "id": "y", "text": 1}', "'id' occurs twice"),
    "duplicate_key_inside": (b'{"id": "x", "text": {"a": 1, "a": 2}}', "'a' occurs twice"),
    "duplicate_id": (b'{"id": "1", "text": "again"}', "is already used in line 1"),
    "duplicate_id_as_number": (b'{"id": 1, "text": "again"}', "is already used in line 1"),
    "missing_id": (b'{"text": "x"}', "'id' is missing"),
    "missing_field": (b'{"id": "x"}', "'text' is missing"),
    "list_row": (b'["id", "x"]', "a list"),
    "number_row": (b"7", "a number"),
    "null_row": (b"null", "null"),
    "empty_id": (b'{"id": "", "text": 1}', "empty"),
    "list_id": (b'{"id": [], "text": 1}', "a list"),
    "bad_utf8": (b'{"id": "x\xff\xfe"}', "not UTF-8"),
    "utf8_surrogate": (b'{"id": "\xed\xa0\x80"}', "not UTF-8"),
    "lone_surrogate": (b'{"id": "x", "text": "\\ud800"}', "surrogate"),
    "deep_nesting": (b"[" * 200_000, "too deep"),
    "long_line": (b'{"id": "x", "text": "' + b"a" * 10_000_000 + b'"}', "longer than"),
}
