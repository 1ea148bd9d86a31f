"""Makes `python -m shardmerge` the same as `shardmerge`, and ends it quietly if Ctrl-C comes before it has begun.

Installed as shardmerge/__main__.py. There is no __init__ beside it, because shardmerge is a namespace.
"""

import sys


def run() -> None:
    """Import the command line and run it. Ctrl-C while it is imported ends it as it would later."""
    try:
        from shardmerge.common.command.group import main

        main(prog_name="shardmerge")
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
