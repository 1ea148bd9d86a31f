"""Makes `python -m shardmerge` the same as `shardmerge`.

Installed as shardmerge/__main__.py. There is no __init__ beside it, because shardmerge is a namespace.
"""

from shardmerge.common.command.group import main

if __name__ == "__main__":
    main(prog_name="shardmerge")
