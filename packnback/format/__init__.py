"""Bytes and values: every layout that packnback writes, as pure functions. No paths, no clock, no keys.

``docs/format.md`` mirrors these modules, and golden bytes in the tests pin them.
"""
