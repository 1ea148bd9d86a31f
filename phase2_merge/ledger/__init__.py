"""What all ranks wrote, as one table, and what an output records of it. Whether it is whole is judged in `proof`.

`table.read` is the story: `rank_directories` finds manifests, `fast_json` parses them, `read` makes rows of them by the
table in `columns`, and `graft` adds what is taken from the reference.
"""
