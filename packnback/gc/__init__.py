"""Deleting, in this order: decide (pure), plan (pure, printable), act. Nothing here needs a key."""
