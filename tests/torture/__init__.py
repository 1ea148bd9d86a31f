"""`make torture`: breaks commands at every file-system call, runs them again, and judges what is on disk.

A point is a scene (a command and what is on disk before it), the number of a call, and a way in which that call goes
wrong (`points`). A C library stands between the command and libc (`shim.c`, `shim`), a warm interpreter forks a child
for every command (`processes`), and trees on disk are compared with those of undisturbed runs (`trees`, `outcomes`,
`judge`). Power fails on file systems of our own (`power`). `python -m tests.torture --help` lists what can be asked.
"""
