"""Opening a stored object whole: everything that must hold before its plaintext may be used.

The layers above parse the record and pass its parts on as bytes. The steps are one function on purpose: there
is no way to get at a plaintext whose id was not verified.
"""

from __future__ import annotations

import hmac

from packnback import errors
from packnback.crypto.derive import Buffer
from packnback.crypto.envelope import OpenedEnvelope
from packnback.crypto.payload import decode_payload
from packnback.crypto.seal import object_id, open_body
from packnback.ids import TAG_LEN, Kind, class_of


def open_object(
    envelope: OpenedEnvelope,
    wanted: bytes,
    kind: int,
    header: bytes,
    refs: Buffer,
    body: Buffer,
    *,
    floor: int | None = None,
) -> bytes:
    """The plaintext of the object `wanted`, verified against its id.

    `header` is the raw 64-byte record header, `refs` the concatenated ids, `kind` the one in the header.
    Whether the plaintext uses exactly the ids in `refs` only its decoder can tell.
    Raises ObjectDamage with the rule that was broken.
    """
    if not Kind.DATA <= kind <= Kind.METADATA or class_of(kind) != envelope.facts.object_class:
        raise errors.ObjectDamage(wanted, "its kind does not fit the class of its envelope")
    if wanted[:TAG_LEN] != envelope.facts.domain_id[:TAG_LEN]:
        raise errors.ObjectDamage(wanted, "its domain is not that of its envelope")
    try:
        padded = open_body(envelope.object_key, header, refs, body)
        plaintext = decode_payload(padded, envelope.facts.object_class, floor=floor)
    except errors.FormatDamage as damage:
        raise errors.ObjectDamage(wanted, f"{damage.what}: {damage.why}") from damage
    found = object_id(envelope.id_key, envelope.facts.domain_id, kind, refs, plaintext)
    if not hmac.compare_digest(found, wanted):
        raise errors.ObjectDamage(wanted, "its contents are not what its id promises")
    return plaintext
