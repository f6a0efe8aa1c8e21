"""What packnback needs of the packages that it builds on, where an older or a differently built one lacks it.

Each is a reason for a lower bound in pyproject.toml. That all bounds together are enough, `make test-oldest` tries.
"""

from __future__ import annotations

from importlib.metadata import version

import cbor2
import pytest
import zstandard
from cryptography.exceptions import UnsupportedAlgorithm
from oldest_dependencies import oldest

from packnback import errors
from packnback.cli import words
from packnback.crypto import exchange


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(".") if part.isdigit()]


def test_what_is_installed_is_not_older_than_the_bounds() -> None:
    bounds = oldest()
    assert bounds.keys() >= {"lmdb", "pynacl", "cryptography", "blake3", "fastcdc", "zstandard", "cbor2"}
    for name, bound in bounds.items():
        assert numbers(version(name)) >= numbers(bound), name


def test_cryptography_has_ml_kem() -> None:
    secret, ciphertext = exchange.mlkem_encapsulate(exchange.mlkem_public(bytes(64)))
    assert exchange.mlkem_decapsulate(bytes(64), ciphertext) == secret


def test_a_cryptography_without_ml_kem_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linked with OpenSSL before 3.5, or 47 with any. The class behaves so there; everything else is ours."""
    public = exchange.mlkem_public(bytes(64))

    class Lacking:
        @staticmethod
        def from_seed_bytes(_: bytes) -> None:
            raise UnsupportedAlgorithm("ML-KEM-768 is not supported by this backend.")

        from_public_bytes = from_seed_bytes

    monkeypatch.setattr(exchange, "MLKEM768PrivateKey", Lacking)
    monkeypatch.setattr(exchange, "MLKEM768PublicKey", Lacking)
    for attempt in (
        lambda: exchange.mlkem_public(bytes(64)),
        lambda: exchange.mlkem_encapsulate(public),
        lambda: exchange.mlkem_decapsulate(bytes(64), bytes(1088)),
        lambda: exchange.check_receiver(b"\x09" + bytes(31), public),
    ):
        with pytest.raises(errors.Refused) as caught:
            attempt()
        assert "ML-KEM" in words.words(caught.value).message


def test_cbor2_refuses_what_we_ask_it_to() -> None:
    for document, option in (("9f01ff", "allow_indefinite"), ("a201000100", "allow_duplicate_keys")):
        cbor2.loads(bytes.fromhex(document))
        with pytest.raises(cbor2.CBORDecodeError):
            cbor2.loads(bytes.fromhex(document), **{option: False})


def test_zstandard_refuses_what_stands_behind_a_frame() -> None:
    frame = zstandard.ZstdCompressor().compress(b"a frame")
    with pytest.raises(zstandard.ZstdError):
        zstandard.ZstdDecompressor().decompress(frame + b"x", allow_extra_data=False)
