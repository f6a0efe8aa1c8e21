"""Keys, envelopes and sealed bodies: everything that turns secrets and plaintext into bytes, and back.

Bytes in, bytes out. Only `keyfile` touches a disk. No primitive is written here: X25519, Ed25519,
HChaCha20 and Argon2id are libsodium's, ML-KEM-768 and ChaCha20-Poly1305 OpenSSL's, hashing is BLAKE3's.
How a record or a snapshot file is laid out is the business of `packnback.format`; here its bytes are
opaque associated data. The two are joined one layer above.
"""
