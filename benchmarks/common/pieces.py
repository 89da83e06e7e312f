"""Files in pieces of at most 60 MiB, for machines to which nothing larger can be carried.

python benchmarks/common/pieces.py split FILE FOLDER
python benchmarks/common/pieces.py join FOLDER FILE
"""

import argparse
import hashlib
from pathlib import Path

from radistill.files import read_json, write_json

SIZE = 60 * 2**20
_MANIFEST = "pieces.json"


def split(path: Path, folder: Path, size: int = SIZE) -> list[Path]:
    """Write the pieces of a file, and a manifest with the SHA-256 of each."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces: list[Path] = []
    with path.open("rb") as file:
        while block := file.read(size):
            pieces.append(folder / f"{path.name}.{len(pieces):03d}")
            pieces[-1].write_bytes(block)
    write_json(folder / _MANIFEST, {piece.name: _hash(piece) for piece in pieces})
    return pieces


def join(folder: Path, path: Path) -> None:
    """Put the pieces in `folder` together again.

    Raises:
        SystemExit: naming the first piece that is missing or is not what it was.
    """
    known = read_json(folder / _MANIFEST)
    for name, hash_ in known.items():
        if not (folder / name).exists() or _hash(folder / name) != hash_:
            raise SystemExit(f"{folder / name}: missing or damaged; carry it again")
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        for name in known:
            file.write((folder / name).read_bytes())
    partial.replace(path)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Split or join."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["split", "join"])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    {"split": split, "join": join}[given.action](given.source, given.target)


if __name__ == "__main__":
    main()
