"""Files: where they are, how they are written and told apart; and the error for what a user can mend."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADAPTER = ROOT / "data" / "question_writer" / "adapter.gguf"  # the embedded question writer's LoRA


class CourseError(ValueError):
    """A problem that the user can mend; the message says what is wrong, where, and what to do."""


def expect(condition: object, message: str) -> None:
    """Raise `CourseError(message)` unless the condition holds."""
    if not condition:
        raise CourseError(message)


def cache_dir() -> Path:
    """The folder of embedded weights and caches: `COURSE_CACHE` if set, else `~/.cache/embedding-course`."""
    path = Path(os.environ.get("COURSE_CACHE") or "~/.cache/embedding-course").expanduser().resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def resolve_path(value: str, name: str) -> Path:
    """An existing path given as parameter `name`: absolute, or relative to here or to the repository."""
    found = next((path.resolve() for path in (here(value), ROOT / value) if there(path)), None)
    expect(
        found,
        f"{name} = {value!r} does not exist (looked in {Path.cwd()} and {ROOT}). "
        f"Give an existing path, absolute or relative to one of the two.",
    )
    return found


def located(value: str) -> str:
    """A path that is found from the repository and not from here, in full; all else (a hub id) as it is."""
    return str(ROOT / value) if value and there(ROOT / value) and not there(here(value)) else value


def here(value: str) -> Path:
    """A path as it is meant in a shell: `~` is the home folder."""
    try:
        return Path(value).expanduser()
    except RuntimeError:  # of a user that this machine does not know
        return Path(value)


def there(path: Path) -> bool:
    """Whether a path exists; one that no file could have (too long, a zero byte) does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_json(path: Path) -> dict:
    """A JSON file that the course wrote; raises CourseError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise CourseError(f"{path} is damaged ({error}). Remove it, and run again what writes it.") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file so that it is either the old one or the whole new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CourseError(
            f"{path} could not be written ({error.strerror}). Free some space or make the folder "
            f"writable, then run again with --resume: finished stages are kept."
        ) from error


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted; hidden ones are left out, linked folders are entered once."""
    found, entered = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        seen = [name for name in folders if not name.startswith(".")]
        links = {name: Path(place, name).is_symlink() for name in seen}
        folders[:] = sorted(seen, key=lambda name, links=links: (links[name], name))  # real ones first
        if (real := os.path.realpath(place)) in entered:
            folders[:] = []
            continue
        entered.add(real)
        found += [Path(place) / name for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files below a folder (`files_below`) with their relative names."""
    sha = hashlib.sha256()
    if path.is_dir():
        for file in files_below(path):
            name = os.fsencode(file.relative_to(path).as_posix())
            sha.update(name + f"\0{digest(file)}\n".encode())
        return sha.hexdigest()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            sha.update(block)
    return sha.hexdigest()
