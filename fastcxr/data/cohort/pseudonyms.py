"""A patient's identifier comes in; a name that tells patients apart and nobody who they are goes out.

The name is a keyed hash: `dicom-<id of the key>-<hash>`. The key, called salt, is this person's own secret; without it
nobody can try out identifiers. Machines with the same salt give the same names.
"""

import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from fastcxr.errors import DataError, OutputError
from fastcxr.storage import sync_folder

VARIABLE = "FASTCXR_SALT"


def hide_patient(identifier: str, salt: bytes) -> str:
    """The same name for the same identifier under the same salt."""
    hashed = hmac.new(salt, identifier.strip().encode("utf-8", "surrogateescape"), hashlib.sha256)
    return f"dicom-{name_salt(salt)}-{hashed.hexdigest()[:16]}"


def name_salt(salt: bytes) -> str:
    """Four letters that tell one salt from another and nothing about it."""
    return hashlib.sha256(salt).hexdigest()[:4]


def read_salt() -> bytes:
    """The salt of the environment, or this person's own, made on first use."""
    if given := os.environ.get(VARIABLE, "").strip():
        return given.encode("utf-8", "surrogateescape")
    path = find_salt_file()
    try:
        if not path.exists():
            _make_salt(path)
        salt = path.read_bytes().strip()
    except OSError as error:
        what = f"the salt that hides patients cannot be kept here ({error.strerror})"
        raise OutputError(what, f"Set {VARIABLE} to a secret of your own", path=path) from error
    if len(salt) < 32:
        what = "the salt that hides patients is damaged"
        raise DataError(what, f"Restore the file, set {VARIABLE}, or remove it to begin anew", path=path, code="E016")
    return salt


def find_salt_file() -> Path:
    """Where this person's salt is kept."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".config") / "fastcxr" / "salt"


def _make_salt(path: Path) -> None:
    """Complete before it has its name: of two processes at once the first wins, and both read the same salt."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".salt.")  # readable by its owner alone
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        path.hardlink_to(draft)  # unlike a rename it never replaces a salt that came first
        sync_folder(path.parent)
    except FileExistsError:
        pass
    finally:
        Path(draft).unlink(missing_ok=True)
