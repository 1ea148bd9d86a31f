"""Every name that stands in a dump, in an output and in a Hugging Face directory, spelt once.

Holds names and patterns only; must not know what the files hold.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from pathlib import Path

# DUMP/rank-00003/manifest.json               the mark that rank 3 is complete
# DUMP/rank-00003/whole-00001.safetensors     tensors that the rank holds entirely
# DUMP/rank-00003/split-00001.safetensors     parts of tensors
# DUMP/.rank-00003.TOKEN.partial/owner.json   who is writing rank 3, or was when its process was killed
# DUMP/.rank-00003.TOKEN.partial/rank-00003/  what it has written; this folder becomes DUMP/rank-00003
# DUMP/.rank-00003.TOKEN.tmp/                 the same before it holds its record, or while it is being removed
# DUMP/rank-00003.failed.json                 rank 3 failed, and why
# DUMP/.contents-DIGEST.bin                   while it is dumped: what the description of a large checkpoint says
# DUMP/.contents.lock                         held by who reads that description for all others
# OUT.dump/                                   the dump of a checkpoint that `export` makes and removes
# OUT.partial/                                an output that is being written
# OUT/model-00001-of-00002.safetensors        shards, or model.safetensors if there is only one
# OUT/model.safetensors.index.json, config.json, hf_quant_config.json, and the sidecars of the reference
# OUT/.shardmerge/{ledger.parquet,plan.json,report.json}      what the merge proved, planned and reported
# OUT/.shardmerge/receipts/{SHARD.json,part-1-of-16.json}     shards, and parts of a merge, that are complete
# OUT/.shardmerge/commit.json                                 the mark that it was proven and published
# OUT.partial/.shardmerge/renaming                            beside that mark: it has not got its name yet
# OUT/.shardmerge/lock                                        what a writer locks; it holds nothing and is never removed
# OUT/.shardmerge/{owners/TOKEN.json,journal.json,next/}      while something is being written

# ---- DUMP
MANIFEST = "manifest.json"
WHOLE, SPLIT = "whole", "split"  # how names of fragments begin: of entire tensors, of parts
MANIFESTS = f"rank-*/{MANIFEST}"  # of all ranks
RANK = re.compile(r"rank-([0-9]{5,7})")
RANK_FAILED = re.compile(r"rank-([0-9]{5,7})\.failed\.json")
RANK_PARTIAL = re.compile(r"\.rank-([0-9]{5,7})\.[0-9a-f]{16}\.partial")
OWNER = "owner.json"  # in the folder of an attempt
CONTENTS = re.compile(r"\.contents(?:\.lock|-[0-9a-f]{32}\.bin)")
FRAGMENT = re.compile(rf"(?:{WHOLE}|{SPLIT})-[0-9]{{5,}}\.safetensors")

# ---- any Hugging Face directory
CONFIG = "config.json"
HF_QUANT_CONFIG = "hf_quant_config.json"
INDEX = "model.safetensors.index.json"
JSON_FILES = (HF_QUANT_CONFIG, CONFIG, INDEX)  # those that a merge writes itself
SINGLE = "model.safetensors"
SHARDS = "*.safetensors"
METADATA = ".metadata"  # of a torch_dist checkpoint: the description of all its files
# a folder with one of them holds a model or a checkpoint, not a dump
MODELS = (CONFIG, INDEX, SINGLE, METADATA)
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")  # what a merge calls one
SIDECARS = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json", "merges.txt",
    "preprocessor_config.json", "processor_config.json", "sentencepiece.bpe.model", "special_tokens_map.json",
    "spiece.model", "tekken.json", "tiktoken.model", "tokenizer.json", "tokenizer.model*", "tokenizer_config.json",
    "video_preprocessor_config.json", "vocab.json", "vocab.txt", "*.tiktoken",
)  # fmt: skip
TEMPLATES = (
    "additional_chat_templates"  # a folder of chat templates by name. Source: transformers, utils/hub.py
)
TEMPLATE = "*.jinja"
NOT_OF_TOKENIZER = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
# weights, whatever they are called
NEVER_SIDECARS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".gguf")
MODULE = re.compile(r"\w+\.py")  # of Python, which config.json may name

# ---- OUT
RECORDS = ".shardmerge"
LEDGER, PLAN, REPORT = "ledger.parquet", "plan.json", "report.json"
RECEIPTS = "receipts"
PART_RECORDS = "part-*.json"
COMMIT = "commit.json"
RENAMING = "renaming"
LOCK = "lock"
OWNERS = "owners"
JOURNAL, NEXT = "journal.json", "next"
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp")  # of `durable`, for any file: .NAME.TOKEN.tmp
TOKEN_BYTES = 8  # of what makes a name that nobody else has
NAME_BYTES = 255  # of one name, on all file systems that we know


def is_sidecar(name: str) -> bool:
    """Whether a merge can have copied a file of this name from a reference: data by SIDECARS, or a Python module."""
    return is_sidecar_data(name) or MODULE.fullmatch(name) is not None


def is_sidecar_data(name: str) -> bool:
    """Whether SIDECARS has a file of this name, and it is not one of weights."""
    if name.endswith(NEVER_SIDECARS) or not name.isprintable():
        return False
    folder, _, inner = name.rpartition("/")
    if folder:
        return folder == TEMPLATES and "/" not in inner and fnmatchcase(inner, TEMPLATE)
    return any(fnmatchcase(name, pattern) for pattern in SIDECARS)


def is_of_tokenizer(name: str) -> bool:
    """Whether a sidecar belongs to the tokenizer, with its chat templates; Python modules are not known to."""
    return is_sidecar_data(name) and name not in NOT_OF_TOKENIZER


def new_token() -> str:
    """Return letters and digits that nobody else has."""
    return os.urandom(TOKEN_BYTES).hex()


def temporary(path: Path) -> Path:
    """Return what a file is called while it is being written: a name that no other process has, on any host.

    A long name is cut between characters, so that it stays a name; one that is not UTF-8 keeps its bytes.
    """
    begin, end = f".{path.name}", f".{new_token()}.tmp"
    while len(os.fsencode(begin)) > NAME_BYTES - len(end):
        begin = begin[:-1]
    return path.with_name(begin + end)


def is_temporary_of(name: str, path: Path) -> bool:
    """Whether a file of this name was, or is, to become `path`."""
    parts = TEMPORARY.fullmatch(name)
    return parts is not None and parts["name"] == path.name


def rank_name(rank: int) -> str:
    """Return the name of a rank's directory inside a dump."""
    return f"rank-{rank:05d}"


def rank_partial(dump: Path, rank: int, token: str) -> Path:
    """Return the folder of an attempt at a rank, in which the owner of `token` builds the rank.

    Args:
        dump: The dump.
        rank: The rank.
        token: Of the owner of the attempt.

    Returns:
        A folder that no other attempt has.
    """
    return dump / f".{rank_name(rank)}.{token}.partial"


def is_of_rank(name: str) -> bool:
    """Whether a rank can have written a file of this name into its directory."""
    return name == MANIFEST or FRAGMENT.fullmatch(name) is not None or is_temporary_of(name, Path(MANIFEST))


def is_of_attempt(name: str) -> bool:
    """Whether an attempt at a rank can have written a file of this name into its folder."""
    return name == OWNER or is_temporary_of(name, Path(OWNER))


def rank_failed(dump: Path, rank: int) -> Path:
    """Return where a rank records that it failed, so that nobody waits for it."""
    return dump / f"{rank_name(rank)}.failed.json"


def contents(dump: Path, identity: str) -> Path:
    """Return where is written down what a large checkpoint holds; `identity` is what that depends on."""
    return dump / f".contents-{identity}.bin"


def contents_lock(dump: Path) -> Path:
    """Return what is locked by who writes that down."""
    return dump / ".contents.lock"


def is_of_contents(name: str) -> bool:
    """Whether a file of this name is one of those, or was to become one."""
    parts = TEMPORARY.fullmatch(name)
    return CONTENTS.fullmatch(parts["name"] if parts else name) is not None


def fragment(kind: str, number: int) -> str:
    """Return the name of a rank's fragment. `kind` is WHOLE or SPLIT, `number` counts from 1."""
    return f"{kind}-{number:05d}.safetensors"


def shard(number: int, count: int) -> str:
    """Return the name of shard `number` of `count`, from 1 on."""
    return SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def partial(out: Path) -> Path:
    """Return where an output is built before it gets its name."""
    return out.with_name(f"{out.name}.partial")


def dump_of_export(out: Path) -> Path:
    """Return where the dump lies while a checkpoint is exported."""
    return out.with_name(f"{out.name}.dump")


def records(out: Path) -> Path:
    """Return the folder of our own records in an output."""
    return out / RECORDS


def receipts(out: Path) -> Path:
    """Return the folder whose files say which shards and parts are complete."""
    return out / RECORDS / RECEIPTS


def receipt(out: Path, shard_name: str) -> Path:
    """Return the path of the receipt of one shard."""
    return receipts(out) / f"{shard_name}.json"


def part_record(out: Path, part: str) -> Path:
    """Return the path of the record of a part of a merge, `part` as in `3/16`."""
    return receipts(out) / f"part-{part.replace('/', '-of-')}.json"


def lock(out: Path) -> Path:
    """Return the path of the lock of an output."""
    return out / RECORDS / LOCK


def owners(out: Path) -> Path:
    """Return the folder in which those who write an output say who they are."""
    return out / RECORDS / OWNERS


def owner_record(out: Path, token: str) -> Path:
    """Return the path of the record of one who writes an output."""
    return owners(out) / f"{token}.json"


def commit(out: Path) -> Path:
    """Return the path of the record that an output was proven, which is written last."""
    return out / RECORDS / COMMIT


def renaming(out: Path) -> Path:
    """Return the path of the mark that an output is proven, and has not got its name yet."""
    return out / RECORDS / RENAMING
