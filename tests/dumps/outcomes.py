"""What a command printed with --json, against the schema that is published."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
from click.testing import Result

from shardmerge.common.command.outcome_schema import SCHEMA


def facts_of(result: Result) -> dict[str, Any]:
    """Return the facts on stdout, which fit the schema and the exit code. Raises jsonschema.ValidationError."""
    facts: dict[str, Any] = json.loads(result.stdout)
    jsonschema.validate(facts, SCHEMA, jsonschema.Draft202012Validator)
    assert facts["exit_code"] == result.exit_code
    assert facts["ok"] is (result.exit_code == 0)
    return facts
