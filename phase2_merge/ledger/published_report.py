"""report.json of a published output: what the merge proved and chose, and what was corrected since."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shardmerge.common import canonical_json
from shardmerge.common.reference import stays_inside

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class PublishedReport:
    """report.json, which `facts` holds as it stands there. A correction has what `was` there and what is `now`."""

    facts: Json
    corrections: dict[str, Json]
    sidecars: tuple[str, ...]

    @property
    def plan_digest(self) -> str | None:
        """The digest of the plan that the report is of, None if it does not say."""
        digest = self.facts.get("plan_digest")
        return digest if isinstance(digest, str) else None

    @property
    def differing(self) -> frozenset[str]:
        """Names of the settings in which config.json was allowed to differ from the model."""
        compared = self.facts["check"].get("config")
        return frozenset(_texts(compared.get("differing")) if isinstance(compared, dict) else ())

    @property
    def warnings(self) -> list[str]:
        """What the merge warned of."""
        return _texts(self.facts["check"].get("warnings"))

    @property
    def tokenizer_files(self) -> tuple[str, ...]:
        """Names of the sidecars that came from another directory than the reference's, as --tokenizer said."""
        return tuple(name for name in _texts(self.facts.get("tokenizer_files")) if name in self.sidecars)

    @property
    def mtp(self) -> str:
        """Where multi-token prediction comes from, as the merge was told; "" if it is not recorded."""
        mtp = self.facts["check"].get("mtp")
        return mtp if isinstance(mtp, str) else ""

    def choosing(self, mtp: str) -> PublishedReport:
        """Return the report of a merge that chose this."""
        return replace(self, facts={**self.facts, "check": {**self.facts["check"], "mtp": mtp}})

    def changed(
        self, checked: Mapping[str, Any], sidecars: Iterable[str], tokenizer_files: Iterable[str] = ()
    ) -> Json:
        """Return what report.json says once metadata are written again.

        Args:
            checked: What its "check" says anew.
            sidecars: Names of all sidecars.
            tokenizer_files: Names of those that --tokenizer gave.

        Returns:
            What the file holds.
        """
        new = {**self.facts, "sidecars": list(sidecars), "check": {**self.facts["check"], **checked}}
        if tuple(tokenizer_files) != self.tokenizer_files:  # else older reports would change in this alone
            new["tokenizer_files"] = list(tokenizer_files)
        return new


def read(path: Path) -> PublishedReport:
    """Read a report.json. Raises ValueError, KeyError, TypeError for what is none, CorruptFileError, OSError."""
    facts = canonical_json.read_object(path, path.parents[1])
    canonical_json.encode(facts)  # it will be written again, which infinities do not allow
    check, sidecars = facts.get("check"), facts.get("sidecars", [])
    corrections = check.get("corrections", {}) if isinstance(check, dict) else None
    if not isinstance(corrections, dict) or not all(
        "." in key and all(key.split(".")) and isinstance(one, dict) and one.keys() >= {"was", "now"}
        for key, one in corrections.items()
    ):
        raise ValueError("no corrections that were recorded")
    if not isinstance(sidecars, list) or not all(
        isinstance(name, str) and stays_inside(name) for name in sidecars
    ):
        raise ValueError("no list of sidecars")
    return PublishedReport(facts, corrections, tuple(sidecars))


def _texts(value: Any) -> list[str]:
    """Return the texts in a list, none if it is not one."""
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
