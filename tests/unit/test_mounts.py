"""What counts as a remote file system. Only the unsafe mistake is one: taking remote for local."""

from __future__ import annotations

from pathlib import Path

import pytest

from packnback import mounts
from packnback.mounts import filesystem_type, is_remote

MOUNTINFO = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 22 0:40 / /mnt/nas rw,relatime shared:9 master:2 - nfs4 nas:/export/a\\040b rw,vers=4.2
310 22 0:41 / /mnt/ssh rw,nosuid - fuse.sshfs me@host:/ rw
"""


@pytest.mark.parametrize(
    ("mount_id", "expected"), [("22", "ext4"), ("31", "nfs4"), ("310", "fuse.sshfs"), ("3", None)]
)
def test_the_type_is_found_by_mount_id(mount_id: str, expected: str | None) -> None:
    assert mounts._type_of(MOUNTINFO, mount_id) == expected


@pytest.mark.parametrize(
    ("kind", "remote"),
    [
        ("ext4", False),
        ("btrfs", False),
        ("fuseblk", False),
        ("fuse.ntfs-3g", False),
        ("nfs", True),
        ("nfs4", True),
        ("cifs", True),
        ("smb3", True),
        ("9p", True),
        ("virtiofs", True),
        ("fuse.sshfs", True),
        ("fuse.rclone", True),
        ("never heard of", True),
        (None, True),
    ],
)
def test_what_is_not_known_to_be_local_is_remote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None, remote: bool
) -> None:
    monkeypatch.setattr(mounts, "filesystem_type", lambda path: kind)
    assert is_remote(tmp_path) is remote


def test_this_machine_tells() -> None:
    assert filesystem_type("/proc") == "proc"
    with pytest.raises(FileNotFoundError):
        is_remote("/nonexistent/at/all")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("ext4", True),
        ("nfs4", True),
        ("proc", True),
        ("fuseblk", True),
        ("fuse.ntfs-3g", True),
        ("fuse", False),
        ("fuse.rclone", False),
        ("9p", False),
    ],
)
def test_where_a_program_may_call_a_file_empty_that_is_not(kind: str, told: bool) -> None:
    assert mounts.tells_sizes(kind) is told
