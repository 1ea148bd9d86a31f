"""Settings that ranks tell: what one leaves out another tells, what differs is told, and what nobody tells is said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from shardmerge.common.errors import (
    SAID_TWICE,
    ConfigContradictionError,
    ConfigMismatchError,
    MixedSettingsError,
    ProblemsFoundError,
)
from shardmerge.common.manifest_facts import Facts
from shardmerge.phase2_merge import metadata, verify
from tests.dumps.dumps import Topology, dense_config, facts_of
from tests.dumps.worlds import MakeWorld, World

EPS = dense_config().get("rms_norm_eps", 1e-6)
UNKNOWN = "does not say what the model computes with"


def telling(world: MakeWorld, settings: Callable[[int], Any], topology: Topology | None = None) -> World:
    """A dump whose ranks tell these settings."""
    one = world(topology or Topology(tp=2))
    plain = facts_of(one.model.config)

    def facts(rank: int) -> dict[str, Any]:
        told = {} if settings(rank) is None else {"settings": settings(rank)}
        return {**{key: value for key, value in plain.items() if key != "settings"}, **told}

    return one.write(facts=facts)


def test_what_a_rank_cannot_tell_another_tells(world: MakeWorld) -> None:
    one = telling(world, lambda rank: {"norm_eps": EPS} if rank else {"norm": "RMSNorm"})
    assert one.check().config.settings == ("norm", "norm_eps")


def test_what_one_rank_alone_tells_is_compared(world: MakeWorld) -> None:
    one = telling(world, lambda rank: {"norm_eps": 0.5} if rank else {"norm": "RMSNorm"})
    with pytest.raises(ConfigMismatchError, match=r"norm_eps .* is 0\.5 in the model"):
        one.check()


def test_ranks_that_differ_are_named(world: MakeWorld) -> None:
    one = telling(world, lambda rank: {"norm_eps": EPS if rank < 2 else 0.5}, Topology(tp=4))
    with pytest.raises(MixedSettingsError, match=r"norm_eps is .* on rank 0, 0\.5 on ranks 2, 3\."):
        one.check(allow=["config"])


def test_ranks_that_tell_the_same_in_other_words_agree(world: MakeWorld) -> None:
    """Frequencies of two kinds of processors differ in their last bits."""
    one = telling(world, lambda rank: {"rope_frequencies": [1.0 + rank * 1e-7] * 2})
    with pytest.raises(ConfigMismatchError, match="rope_frequencies"):
        one.check()


def test_a_dump_that_tells_nothing_is_a_warning(world: MakeWorld) -> None:
    """Everything else is proven as before, and verify does not say that it compared what nobody told."""
    one = telling(world, lambda _: None)
    report = one.check()
    assert [UNKNOWN in text for text in report.warnings] == [True]
    assert "of config.json" not in report.text()
    assert "what config.json says that shows in no shape" in report.text()
    one.merge()
    verified = verify(one.out)
    assert verified.warnings == ()
    checked, unchecked = verified.scope()
    assert not [text for text in checked if "the model that was dumped" in text]
    assert "whether config.json computes what the model did (the dump did not tell that)" in unchecked
    assert metadata(one.out).warnings == ()


def test_what_is_not_told_is_listed(world: MakeWorld) -> None:
    report = telling(world, lambda _: {"norm_eps": EPS}).check()
    assert "activation (hidden_act)" in report.config.not_compared
    assert "vocab_size, of which megatron-core knows a padded number only" in report.config.not_compared
    assert "Not checked: " in report.text()


def test_a_setting_that_nobody_knows_is_kept_and_compared_with_nothing(world: MakeWorld) -> None:
    """A later version may tell more."""
    one = telling(world, lambda _: {"norm_eps": EPS, "new_in_2030": [1, "a", None, True]})
    assert one.check().config.settings == ("norm_eps",)
    one.merge()
    assert verify(one.out).warnings == ()


def test_all_that_nobody_can_read_is_told_beside_what_else_is_wrong(world: MakeWorld) -> None:
    one = telling(world, lambda rank: {"norm_eps": EPS if rank < 2 else 0.5}, Topology(tp=4))
    path = one.reference / "config.json"
    config = json.loads(path.read_text()) | {"hidden_act": ["silu"], "rms_norm_eps": "small"}
    path.write_text(json.dumps(config))
    with pytest.raises(ProblemsFoundError) as caught:
        one.check()
    told = "\n".join(problem.message() for problem in caught.value.problems)
    assert all(words in told for words in ("config.json says activation", "says norm_eps", "on ranks 2, 3"))


def test_facts_that_were_corrected_are_what_verify_compares(world: MakeWorld) -> None:
    one = telling(world, lambda _: {"norm_eps": 0.5})
    one.merge(corrections=[f"facts.settings.norm_eps={EPS}"])
    verified = verify(one.out)
    assert (verified.settings, verified.warnings) == (("norm_eps",), ())
    assert "1 setting of config.json against the model that was dumped" in verified.scope()[0]


def test_what_config_json_was_allowed_to_say_twice_stays_allowed(world: MakeWorld) -> None:
    one = telling(world, lambda _: {"norm_eps": EPS})
    path = one.reference / "config.json"
    config = json.loads(path.read_text()) | {"rope_theta": 99.0, "rope_parameters": {"rope_theta": 1e4}}
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigContradictionError):
        one.check()
    one.merge(allow=["config"])
    for command in (verify, metadata, metadata, verify):
        assert [SAID_TWICE in text for text in command(one.out).warnings] == [True]
    report = json.loads((one.out / ".shardmerge/report.json").read_text())
    assert [SAID_TWICE in text for text in report["check"]["warnings"]] == [True]
    assert metadata(one.out, corrections=["config.rope_theta=10000"]).warnings == ()
    assert verify(one.out).warnings == ()
    written = one.out / "config.json"
    written.write_text(json.dumps(config | {"rope_theta": 98.0}))
    with pytest.raises(ConfigContradictionError):
        verify(one.out)
    written.write_text(json.dumps(config))
    with pytest.raises(ConfigContradictionError):
        verify(one.out)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ([], "facts.settings is a list, which is not an object"),
        ({"norm_eps": {}}, "facts.settings.norm_eps holds an object"),
        ({"norm_eps": [[1]]}, "facts.settings.norm_eps holds a list"),
        ({"norm_eps": 1 << 70}, "facts.settings.norm_eps holds 1180591620717411303424, which is too large"),
        ({"norm_eps": "\x1b[31m"}, "facts.settings.norm_eps holds a text that cannot be printed"),
        ({"\x1b[31m": 1}, "facts.settings holds a text that cannot be printed"),
    ],
)
def test_settings_that_cannot_be_are_a_damaged_manifest(settings: Any, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
        Facts.of_json({"settings": settings})
