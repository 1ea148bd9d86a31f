"""Writes a rank while its model goes on: a child process that was handed the bytes, and what its parent knows of it.

The parent copies all bytes into memory that both share, and sends a plan of what they are. The child has no torch; for
it the shared memory is one more `source.Source`, which it writes with the code of every other dump. Who says what:

    parent                                  child
    Memory, with its file descriptor   ->   maps it
    Begin(job)                         ->   begins to write, and waits for bytes
    Filled(up to here, seen)           ->   writes up to there
                                       <-  Freed(up to here), where the memory is smaller than the rank
    Complete(statistics)               ->   writes the manifest
                                       <-  Done, or Failed(error)

The child ends as soon as its parent has ended, whatever it is doing: then the rank is complete or not there.
It also ends when it cannot take a message. Its parent, which sees the connection close, then has another for the next.
"""
