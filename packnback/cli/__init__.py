"""The command line: words, exit codes, prompts and progress. Only here is anything printed.

One module per family of commands. The engine is imported inside the commands, so that each one loads only what
it needs: ``list`` on a small repository should feel like ``ls``.
"""
