"""OUT on disk: how it appears and how it changes. This is the one place that says what is atomic.

`OUT.partial` stands beside OUT, in the same file system. Every file is written under a temporary name `.NAME.PID.tmp`,
synced and renamed (`common/durable`), except that hard links and ledger.parquet appear under their own name.

**A merge makes OUT**, in this order (`publish`, called by `commands/merge` and `commands/merge_part`):

1.  OUT.partial/ and OUT.partial/.shardmerge/ appear.
2.  .shardmerge/lock, locked by flock (`lock`): exclusive and with the holder's name in it for a merge, shared for its
    parts. Then .shardmerge/receipts/. A merge removes what others left, by names that `shards/resume` lists.
3.  Shards. Adopted ones by link, or by a copy that is renamed. Of assembled ones a stale receipt goes first, then the
    shard is written and renamed, last comes its receipt, .shardmerge/receipts/SHARD.json: it says that the shard is
    complete. Each part of a merge does this for its shards, and then writes .shardmerge/receipts/part-N-of-M.json;
    those go when a last merge has found all shards there.
4.  .shardmerge/plan.json, sidecars, .shardmerge/report.json, hf_quant_config.json, config.json, and last the index;
    .shardmerge/ledger.parquet at the same time.
5.  The folders are synced, and OUT.partial is renamed to OUT, which must not exist. The folder above is synced.
6.  OUT/.shardmerge/lock goes.

**A merge that is killed** in 1 to 5 leaves OUT.partial and no OUT. The next merge of OUT finds the lock free, says so,
keeps shards whose receipts fit, and does everything else again; a part does so for its own shards. In 5 or 6, after the
rename, OUT is whole and a lock is left in it, which the next `metadata` or `merge` of OUT removes. **A merge that
fails** or is interrupted by Ctrl-C removes its OUT.partial and says so; a part and a merge that only publishes what
parts wrote leave it.

**`metadata` changes OUT**, as does a merge whose OUT is published already (`journal`). Both begin by locking the
folder OUT/.shardmerge with flock, by finishing what a journal says, and by removing .shardmerge/next/. Then:

1.  .shardmerge/next/ gets the new files that differ from those in OUT.
2.  .shardmerge/journal.json names them, and the files that go.
3.  Each is renamed to its place: sidecars, hf_quant_config.json, config.json, report.json, and last the index. Then
    sidecars that the new reference does not have are deleted. OUT and .shardmerge are synced.
4.  .shardmerge/journal.json goes, and .shardmerge is synced.
5.  .shardmerge/next/ goes.

Each file is old or new, never half, and every other file of OUT stays as it is. **One that is killed** in 1 has
changed nothing: the next `metadata` or `merge` forgets what was prepared. In 2 to 4, while the journal is there, some
files may be old and some new: the next `metadata` or `merge` does what is left to do. In 5 everything is new. A full
disk, or any other OSError, leaves the same as being killed there.

`check`, `verify`, `inspect` and `diff` change nothing, take no lock and finish no journal. `verify` and `inspect` say
that there is one.
"""
