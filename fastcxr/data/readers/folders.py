"""A folder of class folders comes in; its files, each real one once and in one order everywhere, go out.

Links are followed, but never into a folder that was visited or that holds the data; what is no file is never opened.
"""

import logging
import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fastcxr.errors import DataError
from fastcxr.io.lock import LOCK
from fastcxr.io.tables import TEXT, name_some

log = logging.getLogger("fastcxr")
SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx"}
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
OWN = "left out, for fastcxr made them: %s"
Identity = tuple[int, int] | str
RUNS = "runs"  # where folders are made that nobody named
MARKS = {  # what stands in a file of ours, and by chance in no other of this name
    "recipe.json": '"given_splits"',
    "run.json": '"fastcxr"',
    "compare.json": '"shared"',
    "explain.json": '"withheld"',
}


@dataclass(frozen=True)
class ClassFolder:
    """One folder whose images share a label: its path below the data folder, and the split it stands for."""

    path: str
    label: str
    split: str | None = None


@dataclass
class Walk:
    """What a walk through one data folder has seen, so that no folder is entered twice."""

    root: str
    visited: set[Identity] = field(default_factory=set)
    hidden: list[str] = field(default_factory=list)  # names of dot files and system files
    special: list[str] = field(default_factory=list)  # what is no file: FIFOs, devices, links that lead nowhere
    revisited: list[str] = field(default_factory=list)  # links into folders that are in the list already
    own: list[str] = field(default_factory=list)  # run folders and the like, which fastcxr made

    def __post_init__(self):
        self.shut(self.root)

    def shut(self, folder: str) -> None:
        """From now on no link leads into this folder, nor into one that holds it."""
        real = Path(folder).resolve()
        self.visited |= {identify(place) for place in (real, *real.parents)}

    def step(self, folder: str) -> tuple[list[str], list[str]]:
        """Files and links of a folder and all below it, as paths below the data folder; links are not followed."""
        files, links, waiting = [], [], [folder]
        while waiting:
            place = waiting.pop()
            entries = _scan(self.root, place)
            if place != folder and has_mark(f"{self.root}/{place}", [entry.name for _, entry in entries]):
                self.own.append(place)
                continue
            for path, entry in entries:
                if is_hidden(entry.name):
                    self.hidden.append(entry.name)
                elif entry.is_symlink():
                    links.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    self.visited.add(identify(entry.path))
                    waiting.append(path)
                elif entry.is_file(follow_symlinks=False):
                    files.append(path)
                else:
                    self.special.append(path)
        return files, links

    def follow(self, links: list[str]) -> list[str]:
        """The files that links lead to, in folders not visited yet; more links found on the way are followed too."""
        files, waiting = [], sorted(links, reverse=True)
        while waiting:
            link = waiting.pop()
            mode = _mode(f"{self.root}/{link}")
            if stat.S_ISREG(mode):
                files.append(link)
            elif not stat.S_ISDIR(mode):
                self.special.append(link)
            elif self.enter(link):
                more, further = self.step(link)
                files += more
                waiting += sorted(further, reverse=True)
        return files

    def enter(self, folder: str) -> bool:
        """Whether a linked folder is new; it counts as visited from now on."""
        place = f"{self.root}/{folder}"
        if identify(place) in self.visited:
            self.revisited.append(folder)
            return False
        self.shut(place)
        return True

    def say(self) -> None:
        """Tell what was passed over: aloud what nobody misses, loudly what could have been an image."""
        if self.hidden:
            names = [f"{name} ({n:,})" if n > 1 else name for name, n in sorted(Counter(self.hidden).items())]
            log.info("skipped %s hidden or system files and folders: %s", f"{len(self.hidden):,}", name_some(names))
        if self.revisited:
            log.info("skipped %d links to folders visited already: %s", len(self.revisited), name_some(self.revisited))
        if self.own:
            log.info(OWN, name_some(sorted(self.own)))
        if self.special:
            names = name_some(sorted(self.special))
            log.warning("skipped %d names that are no files (FIFO, device, socket, dangling link): %s",
                        len(self.special), names)  # fmt: skip


def is_hidden(name: str) -> bool:
    """Files and folders that systems leave behind."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def identify(path: str | Path) -> Identity:
    """What stays the same whatever link leads to a file or folder."""
    status = Path(path).stat()
    return (status.st_dev, status.st_ino) if status.st_ino else str(Path(path).resolve())


def list_folders(root: str, below: str = "") -> list[str]:
    """The names of the folders, and links to folders, that are not hidden, nor such as fastcxr makes."""
    return [name for name in _list_all(root, below) if not is_own(_join(root, below, name))]


def list_own(root: str) -> list[str]:
    """The names of the folders that fastcxr made."""
    return [name for name in _list_all(root) if is_own(_join(root, name))]


def _list_all(root: str, below: str = "") -> list[str]:
    return sorted(e.name for _, e in _scan(root, below) if not is_hidden(e.name) and _is_folder(e))


def _join(*parts: str) -> str:
    return "/".join(filter(None, parts))


def list_loose(root: str, below: str = "") -> list[str]:
    """The names of the files beside those folders."""
    return sorted(e.name for _, e in _scan(root, below) if not is_hidden(e.name) and not _is_folder(e))


def list_images(root: str | Path, folders: list[ClassFolder]) -> pd.DataFrame:
    """Every file of the class folders, sorted by path: columns path, label, split, file.

    Raises DataError for an empty class folder, and for one file under two labels (E008) or in two splits (E009).
    """
    root = str(root)
    walk = Walk(root)
    folders = _enter_all(walk, root, folders)
    steps = [(folder, *walk.step(folder.path)) for folder in folders]  # every real folder before any link
    rows = [(folder, path, False) for folder, files, _ in steps for path in files]
    rows += [(folder, path, True) for folder, _, links in steps for path in walk.follow(links)]
    walk.say()
    _refuse_empty(root, folders, {folder for folder, _, _ in rows})
    return _make_table(root, _keep_first(root, rows))


def list_below(root: str | Path) -> list[str]:
    """Every real file of a folder and all below it once, sorted, as paths below it; what was passed over is said."""
    walk = Walk(str(Path(root).absolute()))
    files, links = walk.step("")
    linked = walk.follow(links)
    walk.say()
    first: dict[Identity, str] = {}
    for path in [*sorted(files), *sorted(linked)]:
        first.setdefault(identify(f"{walk.root}/{path}"), path)
    files = sorted(first.values())
    refuse_undecodable(root, files)
    return files


def _enter_all(walk: Walk, root: str, folders: list[ClassFolder]) -> list[ClassFolder]:
    entered: dict[Identity, ClassFolder] = {}
    for folder in folders:
        identity = identify(f"{root}/{folder.path}")
        if identity in entered:
            _refuse_pairs(root, [(entered[identity], entered[identity].path, folder, folder.path)])
        if identity in walk.visited:  # a link to the data folder itself, or above it
            walk.revisited.append(folder.path)
        else:
            entered[identity] = folder
    for folder in entered.values():
        walk.shut(f"{root}/{folder.path}")
    return list(entered.values())


def _keep_first(root: str, rows: list[tuple[ClassFolder, str, bool]]) -> list[tuple[ClassFolder, str]]:
    """Each real file once, under its real name where it has one here; the copies are counted."""
    first: dict[Identity, tuple[ClassFolder, str]] = {}
    clashes, copies = [], []
    for folder, path, _ in sorted(rows, key=lambda row: (row[2], row[1])):
        other = first.setdefault(identify(f"{root}/{path}"), (folder, path))
        if (folder.label, folder.split) != (other[0].label, other[0].split):
            clashes.append((*other, folder, path))
        elif path != other[1]:
            copies.append(path)
    _refuse_pairs(root, clashes)
    if copies:
        log.info("skipped %d links to files that are in the list already: %s", len(copies), name_some(copies))
    return list(first.values())


def _refuse_pairs(root: str, clashes: list[tuple[ClassFolder, str, ClassFolder, str]]) -> None:
    labels = [(a, b) for one, a, two, b in clashes if one.label != two.label]
    splits = [(a, b) for one, a, two, b in clashes if one.label == two.label]
    refuse_pairs(root, labels, "E008")
    refuse_pairs(root, splits, "E009")


def refuse_pairs(root: str | Path, pairs: list[tuple[str, str]], code: str) -> None:
    """Raise if one image stands in two classes (E008) or in two splits (E009)."""
    if not pairs:
        return
    what, fix = {
        "E008": ("the same image has two labels", "Keep one of each pair: fastcxr trains one label an image"),
        "E009": ("the same image stands in two splits", "Keep one of each pair: what is tested may not be trained on"),
    }[code]
    named = name_some([f"{one} = {two}" for one, two in pairs])
    raise DataError(f"{what} in {len(pairs):,} cases ({named})", fix, path=root, code=code)


def _refuse_empty(root: str, folders: Iterable[ClassFolder], filled: set[ClassFolder]) -> None:
    if not filled:
        return  # no image at all is said elsewhere
    if empty := [folder.path for folder in folders if folder not in filled]:
        what = f"class folders without a single file: {name_some(map(repr, empty))}"
        raise DataError(what, "Put images into them, or remove them", path=root, code="E005")


def _make_table(root: str, rows: list[tuple[ClassFolder, str]]) -> pd.DataFrame:
    rows = sorted(rows, key=lambda row: row[1])
    table = {
        "path": [path for _, path in rows],
        "label": [folder.label for folder, _ in rows],
        "split": [folder.split for folder, _ in rows],
        "file": [f"{root}/{path}" for _, path in rows],
    }
    refuse_undecodable(root, table["path"])
    return pd.DataFrame(table, dtype=TEXT)


def refuse_undecodable(root: str | Path, paths: Iterable[str]) -> None:
    """Raise for names that are not UTF-8: no table and no report could hold them."""
    if bad := [path for path in paths if not _is_text(path)]:
        named = name_some(map(repr, map(os.fsencode, bad)))
        fix = "Rename them, e.g. with `convmv -f latin1 -t utf8 -r --notest FOLDER`"
        raise DataError(f"file names that are not UTF-8: {named}", fix, path=root, code="E020")


def _is_text(path: str) -> bool:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _scan(root: str, folder: str) -> list[tuple[str, os.DirEntry]]:
    place = f"{root}/{folder}" if folder else root
    try:
        with os.scandir(place) as entries:
            return [(f"{folder}/{entry.name}" if folder else entry.name, entry) for entry in entries]
    except OSError as error:
        what = f"the folder cannot be listed ({error.strerror})"
        raise DataError(what, "Give yourself the right to read it (chmod +rx)", path=place, code="E001") from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _mode(path: str) -> int:
    try:
        return Path(path).stat().st_mode
    except OSError:  # leads nowhere, or in a circle
        return 0


def is_own(folder: str) -> bool:
    """Whether fastcxr made this folder, or all that is in it. A link is nobody's."""
    try:
        return not os.path.islink(folder) and (has_mark(folder) or _holds_own(folder))
    except OSError:  # whoever reads the images says so
        return False


def has_mark(folder: str, names: Iterable[str] = tuple(MARKS)) -> bool:
    """Whether one of these files of a folder is ours."""
    return any(_holds(f"{folder}/{name}", text) for name, text in MARKS.items() if name in names)


def _holds_own(folder: str) -> bool:
    """Whether only folders of ours are in it; of empty ones runs/ is ours, and one that is about to be written to."""
    is_empty = True
    with os.scandir(folder) as entries:
        for entry in entries:  # the first image ends it: a class may hold a hundred thousand
            if not entry.name.startswith("."):
                is_empty = False
                if not (entry.is_dir(follow_symlinks=False) and is_own(entry.path)):
                    return False
    return not is_empty or Path(folder).name == RUNS or Path(folder, LOCK).is_file()


def _holds(file: str, text: str) -> bool:
    try:
        return os.path.isfile(file) and text in Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
