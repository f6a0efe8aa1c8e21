"""``python -m packnback`` is the same program as ``packnback``."""

from packnback.cli.main import start

start()
