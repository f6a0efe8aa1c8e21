"""Reading back: from a snapshot's word on the command line to bytes in files, trusting nothing in between.

`objects` opens and verifies single objects, `snapshot` what signs and binds them, `listing` and `walk` navigate
the tree, `look` and `diff` answer questions about it, `locate` turns files into pieces of objects, `target`,
`attributes`, `files` and `restore` write below one directory, `verify` reads everything and writes nothing.
"""
