"""The four kinds of secret keys, and who can do what with them.

============  ======================================  ==================================================
kind          holds                                   can
============  ======================================  ==================================================
owner         one seed; everything derives from it    everything
put           the owner's public bundle, keyed-hash   add objects and snapshots of one client and epoch;
              keys, a signing seed, a certificate     open nothing
list          the meta class's secrets and roots      read names and sizes
restore       both classes' secrets and roots         read everything; certify, sign, cut nothing
============  ======================================  ==================================================

A put key is a deterministic function of (owner key, name, epoch, group), so the owner keeps no registry.
Object ids and cut points depend on the *domain* (one client's own, or a group's), psk and signing seed on the
*client*; an epoch changes all of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property

from packnback import errors
from packnback.crypto import exchange
from packnback.crypto.bundle import OwnerBundle, Receiver, fingerprint
from packnback.crypto.certificate import Certificate, issue
from packnback.crypto.derive import DK, KEY_LEN, MAC, lp, u32
from packnback.crypto.names import encode_name
from packnback.crypto.secret import Secret
from packnback.crypto.sign import verify_key
from packnback.ids import CLIENT_ID_LEN, DOMAIN_ID_LEN, ObjectClass

SEED_LEN = 32
EPOCH_LIMIT = (1 << 32) - 1


class ClassSecrets(Secret, frozen=True):
    """What opens one class: X25519 secret 32, ML-KEM seed 64 (d ‖ z), roots of psks and id keys, 32 each."""

    x25519: bytes
    mlkem_seed: bytes
    psk_root: bytes
    id_root: bytes

    def receiver(self) -> Receiver:
        """The public keys that belong to these secrets."""
        return Receiver(exchange.x25519_public(self.x25519), exchange.mlkem_public(self.mlkem_seed))


class Reader:
    """What every key that opens something offers: owner, list and restore keys.

    The three attributes are read-only everywhere; where a subclass computes one as a property, mypy has to
    be told, since it takes a bare annotation for a writable attribute.
    """

    kind: str
    bundle: OwnerBundle
    secrets: Mapping[ObjectClass, ClassSecrets]

    @property
    def owner_id(self) -> bytes:
        """H of the owner's bundle, 32 bytes."""
        return self.bundle.owner_id

    @property
    def classes(self) -> frozenset[ObjectClass]:
        """The classes that this key can open."""
        return frozenset(self.secrets)

    @property
    def fingerprint(self) -> str:
        """16 hex digits by which people compare keys."""
        return fingerprint(self.kind, self.owner_id)

    def secrets_of(self, object_class: ObjectClass) -> ClassSecrets:
        """The secrets of a class. Raises KeyCannot if this key was not given them."""
        try:
            return self.secrets[object_class]
        except KeyError:
            raise errors.KeyCannot(
                have=self.kind, need=["restore", "owner"], action=f"open {object_class.name.lower()}"
            ) from None

    def psk(self, object_class: ObjectClass, client_id: bytes, epoch: int) -> bytes:
        """The pre-shared key of a client in an epoch. Raises KeyCannot."""
        return MAC(self.secrets_of(object_class).psk_root, client_id + u32(epoch))

    def id_key(self, object_class: ObjectClass, domain_id: bytes) -> bytes:
        """The key under which a domain's object ids of a class are made. Raises KeyCannot."""
        return MAC(self.secrets_of(object_class).id_root, domain_id)


class ReadKey(Secret, Reader, frozen=True):
    """A list key (meta secrets only) or a restore key (both classes)."""

    bundle: OwnerBundle
    secrets: Mapping[ObjectClass, ClassSecrets]

    def __post_init__(self) -> None:
        if ObjectClass.META not in self.secrets:
            raise ValueError("there is no key that reads contents but not names")

    @property
    def kind(self) -> str:  # type: ignore[override]
        """``restore`` if it opens data, else ``list``."""
        return "restore" if ObjectClass.DATA in self.secrets else "list"


class PutKey(Secret, frozen=True):
    """One client's key in one epoch: seals to the owner, names objects, cuts, signs. It opens nothing.

    `psk` and `id_key` are per class, 32 bytes each; `cut` is the domain's cut key.
    """

    bundle: OwnerBundle
    psk: Mapping[ObjectClass, bytes]
    id_key: Mapping[ObjectClass, bytes]
    cut: bytes
    sign_seed: bytes
    certificate: Certificate

    kind = "put"

    @property
    def owner_id(self) -> bytes:
        """H of the owner's bundle, 32 bytes."""
        return self.bundle.owner_id

    @property
    def name(self) -> str:
        """The client's name, as certified."""
        return self.certificate.name

    @property
    def client_id(self) -> bytes:
        """16 bytes; the same in every epoch."""
        return self.certificate.client_id

    @property
    def domain_id(self) -> bytes:
        """16 bytes; shared by the members of a group, new in every epoch."""
        return self.certificate.domain_id

    @property
    def epoch(self) -> int:
        """1 … 2³²−1."""
        return self.certificate.epoch

    @property
    def fingerprint(self) -> str:
        """16 hex digits by which people compare keys."""
        return fingerprint(self.kind, self.owner_id, self.certificate.raw)

    @property
    def chunk_key(self) -> bytes:
        """Decides where large files are cut."""
        return DK("cut chunk", self.cut)

    @property
    def bundle_key(self) -> bytes:
        """Decides where bundles of small files end."""
        return DK("cut bundle", self.cut)

    @property
    def page_key(self) -> bytes:
        """Decides where listings and extent lists are cut."""
        return DK("cut page", self.cut)


class OwnerKey(Secret, Reader, frozen=True, dict=True):
    """The root of everything: 32 random bytes. Reads like a restore key, and makes all other keys."""

    seed: bytes

    kind = "owner"

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_LEN:
            raise ValueError("an owner key has 32 bytes")

    @classmethod
    def generate(cls) -> OwnerKey:
        """A new owner, from the system's random source."""
        return cls(os.urandom(SEED_LEN))

    @cached_property
    def secrets(self) -> Mapping[ObjectClass, ClassSecrets]:  # type: ignore[override]
        """The reading secrets of both classes."""
        return {object_class: self._class_secrets(object_class) for object_class in ObjectClass}

    @cached_property
    def bundle(self) -> OwnerBundle:  # type: ignore[override]
        """The public half of this key."""
        receivers = {object_class: secrets.receiver() for object_class, secrets in self.secrets.items()}
        return OwnerBundle.build(verify_key(self._derive("certify ed25519")), receivers)

    def list_key(self) -> ReadKey:
        """A key that reads listings and nothing else."""
        return ReadKey(self.bundle, {ObjectClass.META: self.secrets[ObjectClass.META]})

    def restore_key(self) -> ReadKey:
        """A key that reads everything and makes nothing."""
        return ReadKey(self.bundle, self.secrets)

    def put_key(self, name: str, epoch: int = 1, group: str | None = None) -> PutKey:
        """The put key of a client; the same arguments give the same key.

        Raises UsageError for an invalid name or group, or an epoch outside 1 … 2³²−1.
        """
        if not 1 <= epoch <= EPOCH_LIMIT:
            raise errors.UsageError(f"epoch {epoch} is not within 1 … {EPOCH_LIMIT}")
        client_id, domain_id = self._client_id(name), self._domain_id(name, epoch, group)
        sign_seed = MAC(self._derive("client sign root"), client_id + u32(epoch))
        certificate = issue(
            self._derive("certify ed25519"),
            owner_id=self.owner_id,
            client_id=client_id,
            domain_id=domain_id,
            epoch=epoch,
            verify_key=verify_key(sign_seed),
            name=name,
        )
        return PutKey(
            bundle=self.bundle,
            psk={object_class: self.psk(object_class, client_id, epoch) for object_class in ObjectClass},
            id_key={object_class: self.id_key(object_class, domain_id) for object_class in ObjectClass},
            cut=MAC(self._derive("cut root"), domain_id),
            sign_seed=sign_seed,
            certificate=certificate,
        )

    def _client_id(self, name: str) -> bytes:
        return MAC(self._derive("name root"), b"client\0" + lp(encode_name(name)), CLIENT_ID_LEN)

    def _domain_id(self, name: str, epoch: int, group: str | None) -> bytes:
        if group is None:
            scope = b"private\0" + lp(encode_name(name))
        else:
            scope = b"group\0" + lp(encode_name(group))
        return MAC(self._derive("name root"), scope + u32(epoch), DOMAIN_ID_LEN)

    def _class_secrets(self, object_class: ObjectClass) -> ClassSecrets:
        name = object_class.name.lower()
        return ClassSecrets(
            x25519=self._derive(f"{name} x25519"),
            mlkem_seed=self._derive(f"{name} mlkem768", exchange.MLKEM_SEED_LEN),
            psk_root=self._derive(f"{name} psk root"),
            id_root=self._derive(f"{name} id root"),
        )

    def _derive(self, purpose: str, length: int = KEY_LEN) -> bytes:
        return DK(f"owner {purpose}", self.seed, length)
