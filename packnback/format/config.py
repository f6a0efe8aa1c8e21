"""The repository's ``config``: its random id and the owner's public bundle, and nothing that a client obeys.

``"PNBF" 1 0 0 0 ‖ repository id 16 ‖ owner bundle 2472 ‖ BLAKE3(all preceding)[:16]``. A client takes no key,
suite or option from here; it compares and pins.
"""

from __future__ import annotations

from blake3 import blake3
from msgspec import Struct

from packnback.errors import FormatDamage, UnsupportedVersion
from packnback.ids import CHECKSUM_LEN, REPOSITORY_ID_LEN

MAGIC = b"PNBF"
VERSION = 1
BUNDLE_LEN = 2472
CONFIG_LEN = 8 + REPOSITORY_ID_LEN + BUNDLE_LEN + CHECKSUM_LEN


class Config(Struct, frozen=True):
    """What identifies a repository."""

    repository_id: bytes
    owner_bundle: bytes
    """2472 bytes, not yet validated: that is the crypto layer's business."""

    @property
    def owner_id(self) -> bytes:
        """BLAKE3 of the bundle."""
        return blake3(self.owner_bundle).digest()


def encode(config: Config) -> bytes:
    """The bytes of ``config``."""
    front = MAGIC + bytes((VERSION, 0, 0, 0)) + config.repository_id + config.owner_bundle
    return front + blake3(front).digest(CHECKSUM_LEN)


def decode(data: bytes) -> Config:
    """The config; raises FormatDamage, or UnsupportedVersion for a newer format."""
    if len(data) < 8 or data[:4] != MAGIC:
        raise FormatDamage("config", "magic")
    if data[4] != VERSION and len(data) >= 24 and blake3(data[:-16]).digest(CHECKSUM_LEN) == data[-16:]:
        # Only an intact file may claim another version: a flipped bit must not pass for the future.
        raise UnsupportedVersion("repository", data[4], VERSION)
    if len(data) != CONFIG_LEN:
        raise FormatDamage("config", f"{len(data)} bytes")
    if blake3(data[:-CHECKSUM_LEN]).digest(CHECKSUM_LEN) != data[-CHECKSUM_LEN:]:
        raise FormatDamage("config", "checksum")
    if data[4:8] != bytes((VERSION, 0, 0, 0)):
        raise FormatDamage("config", "reserved bytes")
    return Config(data[8:24], data[24 : 24 + BUNDLE_LEN])
