"""OUT on disk: how it appears and how it changes. This is the one place that says what is atomic.

`OUT.partial` stands beside OUT, in the same file system. Every file is written under a temporary name
`.NAME.TOKEN.tmp`, TOKEN being random, synced and renamed (`common/durable`), except that hard links appear under
their own name.

**One lock for each output** (`lock`), held by everything that writes OUT.partial or OUT: .shardmerge/lock, locked with
flock, and .shardmerge/owners/TOKEN.json, which says who holds it. Parts of one merge hold it together, everyone else
alone. The lock file is never removed, and goes with its folder from OUT.partial to OUT; only an OUT.partial that was
made while another merge published OUT, and that holds nothing else, goes with its lock. Before anything is published
or removed, whoever holds the lock looks whether its record is still there.

**A merge makes OUT**, in this order (`publish`, called by `commands/merge` and `commands/merge_part`):

1.  OUT.partial/, OUT.partial/.shardmerge/, the lock, .shardmerge/receipts/. A merge removes what others left, by names
    that `shards/resume` lists.
2.  Finished shards of an earlier attempt are read again, and stay if they are right. Fragments are adopted by link, or
    by a copy that is renamed, verified under their new names, and synced. Of the other shards a stale receipt goes
    first, then the shard is written and renamed, last comes its receipt, .shardmerge/receipts/SHARD.json. Each part of
    a merge does this for its shards, and then writes .shardmerge/receipts/part-N-of-M.json.
3.  .shardmerge/plan.json, sidecars, .shardmerge/report.json, hf_quant_config.json, config.json, and last the index;
    .shardmerge/ledger.parquet at the same time.
4.  Exactly the planned shards are proved to be there (`shards/final_proof`): names, sizes, headers, receipts; and that
    each is the file whose bytes were verified. If it is not, it is read again.
5.  The folders are synced, .shardmerge/renaming and .shardmerge/commit.json are written, and OUT.partial is renamed to
    OUT, which must not exist, or be an empty folder, whose owner and mode it gets.
6.  The folder above is synced, and .shardmerge/renaming and the records of parts go. What fails here is a warning: OUT
    is published.
7.  The owner's record goes, and the lock is free.

**A merge that is killed, fails, or is interrupted** in 1 to 5 leaves OUT.partial and no OUT. The next merge of OUT gets
the lock, since the owner of the record in it has ended; it says so, and goes on with the shards that are finished. An
owner on another host, of which nobody can say from here whether it has ended, is named instead, and --break-lock takes
the lock from it. In 6 or 7 OUT is whole, and the next `metadata` or `merge` of OUT removes what is left.

A folder that is called OUT.partial and holds .shardmerge/commit.json without .shardmerge/renaming is a checkpoint that
was published, whatever others left in it since, and is left alone.

**`metadata` changes OUT**, as does a merge whose OUT is published already (`journal`). Both begin by locking OUT, by
finishing what a journal says, and by removing .shardmerge/next/. Then:

1.  .shardmerge/next/ gets the new files that differ from those in OUT, with the owner and the mode of those.
2.  .shardmerge/journal.json names them, and the files that go.
3.  Each is renamed to its place: sidecars, hf_quant_config.json, config.json, report.json, and last the index. Then
    sidecars that the new reference does not have are deleted. OUT and .shardmerge are synced.
4.  .shardmerge/journal.json goes, and .shardmerge is synced.
5.  .shardmerge/next/ goes.

Each file is old or new, never half, and every other file of OUT stays as it is. **One that is killed** in 1 has
changed nothing: the next `metadata` or `merge` forgets what was prepared. In 2 to 4, while the journal is there, some
files may be old and some new: the next `metadata` or `merge` does what is left to do. In 5 everything is new. A full
disk, or any other OSError, leaves the same as being killed there.

`check`, `verify`, `inspect`, `diff` and `merge --dry-run` change nothing, take no lock and finish no journal. `verify`,
`inspect` and the dry run say that there is one.
"""
