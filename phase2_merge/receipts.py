"""What is known of a shard that was written: kept beside the output, so that its bytes can be checked ever after."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from shardmerge.common import canonical_json, durable
from shardmerge.common.errors import CorruptFileError

RECORDS = ".shardmerge"
FOLDER = "receipts"


@dataclass(frozen=True, slots=True)
class Receipt:
    """Size of a shard, xxh3_128 of its header (length bytes included) and of each tensor's bytes.

    `checked`: its pieces were compared with the checksums in the manifests.
    """

    shard: str
    plan_digest: str
    checked: bool
    num_bytes: int
    header_xxh3_128: str
    tensors: dict[str, str]


def write(out: Path, receipt: Receipt) -> None:
    """Keep a receipt in `out/.shardmerge/receipts`."""
    durable.write_file(_path(out, receipt.shard), canonical_json.encode(asdict(receipt)))


def read(out: Path, shard: str) -> Receipt | None:
    """The receipt of a shard, None if it has none. Raises CorruptFileError."""
    path = _path(out, shard)
    try:
        return Receipt(**canonical_json.read_object(path))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CorruptFileError(str(path), str(error)) from None


def _path(out: Path, shard: str) -> Path:
    return out / RECORDS / FOLDER / f"{shard}.json"
