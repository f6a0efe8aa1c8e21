"""packnback: deduplicating, encrypted backups whose clients can only write."""

__version__ = "0.1.0"
