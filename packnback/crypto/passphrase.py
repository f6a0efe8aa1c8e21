"""Argon2id (RFC 9106): what stands between a stolen key file and the key.

Costs are written into the key file and so are hostile input when it is read: too low a cost would make a
forged file an oracle for cheap guessing, too high a one would hang or starve whoever opens it.
"""

from __future__ import annotations

import os

from msgspec import Struct
from nacl.bindings import crypto_pwhash_alg, crypto_pwhash_ALG_ARGON2ID13

from packnback import errors
from packnback.crypto.derive import KEY_LEN
from packnback.ids import KIB, MIB

SALT_LEN = 16
MEMORY_MIN = 64 * MIB
MEMORY_MAX = 4096 * MIB
PASSES_MAX = 16


class Cost(Struct, frozen=True):
    """Passes over memory (libsodium's opslimit) and memory in bytes (its memlimit)."""

    passes: int = 3
    memory: int = 256 * MIB

    def problem(self) -> str | None:
        """Why this cost is refused, if it is: below 64 MiB, above 4 GiB, above 16 passes."""
        if not 1 <= self.passes <= PASSES_MAX:
            return f"argon2id with {self.passes} passes is outside 1 … {PASSES_MAX}"
        if not MEMORY_MIN <= self.memory <= MEMORY_MAX or self.memory % KIB:
            return f"argon2id with {self.memory} bytes is outside {MEMORY_MIN} … {MEMORY_MAX}"
        return None


DEFAULT_COST = Cost()


def fresh_salt() -> bytes:
    """16 random bytes."""
    return os.urandom(SALT_LEN)


def stretch(passphrase: bytes, salt: bytes, cost: Cost) -> bytes:
    """The 32-byte key of a passphrase. Releases the GIL.

    Raises ValueError for a cost outside the limits, Refused if the machine lacks the memory.
    """
    problem = cost.problem()
    if problem is not None:
        raise ValueError(problem)
    try:
        return crypto_pwhash_alg(KEY_LEN, passphrase, salt, cost.passes, cost.memory, crypto_pwhash_ALG_ARGON2ID13)
    except RuntimeError as error:
        raise errors.Refused("memory", f"argon2id needs {cost.memory} bytes") from error
