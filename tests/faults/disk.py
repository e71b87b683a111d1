"""A small disk of the tests' own: an ext4 file system in a file, which can fill up, stall and break."""

import os
import subprocess
from pathlib import Path

import pytest


class Disk:
    """Mounted at ``folder``."""

    def __init__(self, folder: Path, image: Path, mib: int) -> None:
        self.folder = folder
        self._image = image
        if os.geteuid() != 0:
            pytest.skip("a disk of one's own needs root")
        folder.mkdir()
        with image.open("wb") as file:
            file.truncate(mib * 2**20)
        # No blocks kept for root: it would not notice a full disk.
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        if (done := self._mount()).returncode:
            pytest.skip(f"no loop devices here: {done.stderr}")

    def _mount(self) -> "subprocess.CompletedProcess[str]":
        options = "loop,errors=remount-ro"
        return subprocess.run(["mount", "-o", options, self._image, self.folder], capture_output=True, text=True)

    def fill(self, left: int) -> None:
        """Leave ``left`` bytes."""
        state = os.statvfs(self.folder)
        size = state.f_bavail * state.f_frsize - left
        subprocess.run(["fallocate", "-l", str(size), self.folder / "filler"], check=True)

    def empty(self) -> None:
        (self.folder / "filler").unlink()

    def stall(self, *, on: bool) -> None:
        """Let nothing be written; who tries waits."""
        subprocess.run(["fsfreeze", "-f" if on else "-u", self.folder], check=True)

    def break_(self) -> None:
        """What an error in the disk's own structures does: from now on it is read-only."""
        source = subprocess.check_output(["findmnt", "-no", "SOURCE", self.folder], text=True).strip()
        Path(f"/sys/fs/ext4/{Path(source).name}/trigger_fs_error").write_text("broken on purpose")

    def mend(self) -> None:
        self.unmount()
        subprocess.run(["e2fsck", "-fy", self._image], capture_output=True)
        assert self._mount().returncode == 0

    def unmount(self) -> None:
        subprocess.run(["umount", self.folder], check=True)
