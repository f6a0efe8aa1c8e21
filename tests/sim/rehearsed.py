"""A client whose every byte is rehearsed: the same files give the same records, in every run and every process.

A sweep runs the same scenario hundreds of times and must meet the same crash points each time, so nothing may
come from the system's random source. Envelopes are real and open with the owner's key: ML-KEM answers even a made
up ciphertext with a shared secret of its own, so one can be drawn first and its secret be asked for afterwards.

Everything that was sealed is remembered, so a reader can be held to the very bytes that were written.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from smallclient import OWNER, Sealed, SmallClient

from packnback.crypto.envelope import SealingKeys, make_envelope
from packnback.crypto.exchange import MLKEM_CIPHERTEXT_LEN, mlkem_decapsulate
from packnback.crypto.payload import encode_payload
from packnback.crypto.seal import body_length, object_id, seal_body
from packnback.format import record
from packnback.ids import ObjectClass, class_of

REPOSITORY_ID = bytes(range(100, 116))
SMALL_FLOOR = 256
"""Bytes to which small objects are padded where thousands of disks are copied. A reader would refuse to open them."""


class RehearsedClient(SmallClient):
    """See the module's docstring."""

    def __init__(self, name: str, *, group: str | None = None, floor: int | None = None) -> None:
        super().__init__(REPOSITORY_ID, name, group=group)
        self._floor = floor
        self._rng = random.Random(f"rehearsed {name}")
        self._sealed: dict[tuple[int, tuple[bytes, ...], bytes, int], Sealed] = {}
        self._trees: dict[tuple[tuple[str, bytes], ...], dict[bytes, Sealed]] = {}
        for object_class in ObjectClass:
            self.envelope(object_class)

    def envelope(self, object_class: ObjectClass) -> tuple[bytes, bytes, SealingKeys]:
        """As in `SmallClient`, with drawn secrets."""
        if object_class not in self._envelopes:
            ciphertext = self._rng.randbytes(MLKEM_CIPHERTEXT_LEN)
            shared = mlkem_decapsulate(OWNER.secrets[object_class].mlkem_seed, ciphertext)
            envelope, envelope_id, keys = make_envelope(
                self.key,
                self.repository_id,
                object_class,
                secret=self._rng.randbytes(32),
                ephemeral=self._rng.randbytes(32),
                kem=(shared, ciphertext),
            )
            self._envelopes[object_class] = record.envelope_record(envelope), envelope_id, keys
        return self._envelopes[object_class]

    def seal(self, kind: int, refs: Sequence[bytes], plaintext: bytes, level: int) -> Sealed:
        """As in `SmallClient`, but the same object is always the same bytes."""
        key = kind, tuple(refs), plaintext, level
        known = self._sealed.get(key)
        if known is None:
            known = self._sealed[key] = self._seal(kind, refs, plaintext, level)
        return known

    def _seal(self, kind: int, refs: Sequence[bytes], plaintext: bytes, level: int) -> Sealed:
        object_class = class_of(kind)
        _, envelope_id, keys = self.envelope(object_class)
        joined = b"".join(refs)
        made = object_id(self.key.id_key[object_class], self.key.domain_id, kind, joined, plaintext)
        padded = encode_payload(plaintext, object_class, codec_level=None, floor=self._floor)
        header = record.encode_header(kind, level, len(refs), body_length(padded), made, envelope_id)
        body = seal_body(keys, header, joined, padded, randomness=random.Random(made).randbytes(32))
        return Sealed(made, record.finish(header, joined, bytes(body)), level)

    def tree(self, files: dict[str, bytes]) -> dict[bytes, Sealed]:
        """Every object of a backup of these files, the root included, by id."""
        key = tuple(sorted(files.items()))
        if key not in self._trees:
            objects, root = self.objects(files)
            self._trees[key] = {o.id: o for o in [*objects, root]}
        return self._trees[key]
