"""Makes `torchrun -m shardmerge.phase1_dump` the same as `shardmerge dump`."""

import sys

from shardmerge.common.command.group import main

if __name__ == "__main__":
    main(["dump", *sys.argv[1:]])
