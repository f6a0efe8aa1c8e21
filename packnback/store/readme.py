"""The README.txt that every repository carries: for whoever finds the disk in ten years."""

README_TEXT = """\
This directory is a packnback repository: deduplicated, encrypted backups.

Do not rename, edit or delete anything in here; use the program.

  config       the repository's random id and its owner's public key
  packs/       the data: immutable files, named by the BLAKE3 hash of their footer
  snapshots/   one small file per backup: CLIENT-SEQUENCE.snap
  forgotten/   empty markers: this snapshot was forgotten at this time
  headers/     signed headers of backups that are gone
  condemned/   lists of packs that are about to be deleted (network file systems)
  leases/      who is at work; no longer than that (network file systems)
  quarantine/  damaged files that `packnback check --repair` put aside
  tmp/         unfinished files; may be emptied when no packnback is running
  index/       a cache (LMDB), made anew from the rest when it is lost

To list and to restore you need the program and the owner key, a small text file
whose first line is "packnback owner key v1" (or a list or restore key made from it):

  pip install packnback
  packnback -r THIS_DIRECTORY -k OWNER.key list
  packnback -r THIS_DIRECTORY -k OWNER.key restore latest --to SOME_DIRECTORY

Without that key nobody can read anything in here. The format is described, exact to
the byte, in docs/format.md of packnback's sources: envelopes of X25519 and ML-KEM-768,
records sealed with XChaCha20-Poly1305, compressed with zstd, listed in CBOR.
"""
