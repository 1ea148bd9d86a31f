"""What a user says that dump or reference say wrongly: `--set` and `--set-new`.

`written` parses a Correction as it stands on the command line, `typed` reads its value by what is there now, and
`settle` turns it into `changes`: one for every key that says the same thing. `record` tells the report, and replays
what it told.
Manifests and references stay as they are: changes apply to copies of what they say. Must not know any file.
"""
