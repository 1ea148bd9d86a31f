"""The JSON Schema of what every command prints with --json and writes with --report.

What a command adds of its own is described where it is made; here stands what a program may rely on for all of them.
"""

from __future__ import annotations

from typing import Any

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Outcome of a command of shardmerge",
    "type": "object",
    "required": ["schema_version", "shardmerge", "command", "ok", "exit_code", "checked", "unchecked"],
    "properties": {
        "schema_version": {"const": 1, "description": "Of this schema."},
        "shardmerge": {"type": "string", "description": "The version of the program."},
        "command": {"type": "string", "description": "The subcommand, such as merge."},
        "ok": {"type": "boolean", "description": "Whether the exit code is 0."},
        "exit_code": {"type": "integer", "minimum": 0, "maximum": 255},
        "checked": {
            "type": "array",
            "items": {"type": "string"},
            "description": "What was looked at, in words. Empty for a refusal; architectures looks at nothing.",
        },
        "unchecked": {
            "type": "array",
            "items": {"type": "string"},
            "description": "What was not looked at, in words.",
        },
        "warnings": {"type": "array", "items": {"type": "string"}},
        "error": {"type": "string", "description": "The class of the error, of a command that was refused."},
        "message": {"type": "string", "description": "What it says."},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        "problems": {
            "type": "array",
            "description": "All problems, where there are several.",
            "items": {
                "type": "object",
                "required": ["error", "exit_code", "message"],
                "properties": {
                    "error": {"type": "string"},
                    "exit_code": {"type": "integer"},
                    "message": {"type": "string"},
                },
            },
        },
        "remarks": {"type": "array", "items": {"type": "string"}},
    },
    "if": {"required": ["error"]},
    "then": {
        "properties": {"ok": {"const": False}},
        "anyOf": [{"required": ["message"]}, {"required": ["problems", "counts"]}],
    },
}
