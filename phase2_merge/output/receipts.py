"""The receipt of a shard: what is recorded of it beside the output, so that its bytes can be checked ever after.

A receipt has a digest of itself, which shows damage, not forgery. Must not open the shard: `shards/final_proof`
compares the two.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from shardmerge.common import canonical_json, durable, places
from shardmerge.common.errors import CorruptFileError
from shardmerge.common.errors.output import COPY_OUTPUT

DIGEST = "xxh3_128"  # of everything else in a receipt


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is recorded of one shard.

    Attributes:
        shard: Its name.
        plan_digest: Of the plan that it belongs to.
        checked: Whether its pieces were compared with the checksums in the manifests.
        num_bytes: Its size.
        header_xxh3_128: Of its header, the eight bytes of length included.
        tensors: xxh3_128 of each tensor's bytes, by name.
    """

    shard: str
    plan_digest: str
    checked: bool
    num_bytes: int
    header_xxh3_128: str
    tensors: dict[str, str]

    def __post_init__(self) -> None:
        texts = (self.shard, self.plan_digest, self.header_xxh3_128, *self.tensors, *self.tensors.values())
        if not all(isinstance(text, str) for text in texts) or type(self.num_bytes) is not int:
            raise TypeError("it is not a receipt")


def write(out: Path, receipt: Receipt) -> None:
    """Write a receipt to `out/.shardmerge/receipts`."""
    facts = asdict(receipt)
    data = canonical_json.encode(facts | {DIGEST: _digest(facts)})
    durable.write_file(places.receipt(out, receipt.shard), data)


def read(out: Path, shard: str) -> Receipt | None:
    """Return the receipt of a shard, None if it has none. Raises CorruptFileError."""
    path = places.receipt(out, shard)
    try:
        facts = canonical_json.read_object(path, out)
        if facts.pop(DIGEST, None) != _digest(facts):
            raise ValueError("its digest does not fit its content (edited or damaged)")
        return Receipt(**facts)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        raise CorruptFileError(str(path), str(error), do=COPY_OUTPUT) from None


def digest(receipt: Receipt) -> str:
    """Return the checksum of everything that a receipt says, and so of its shard."""
    return _digest(asdict(receipt))


def _digest(facts: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(canonical_json.encode(facts))
