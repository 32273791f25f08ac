"""List the images of class folders, each file once and in a fixed order, and recognise output folders of fastcxr.

Links are followed, except into visited folders and their parents. Special files (FIFO, device) are never opened.
"""

import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.masks import find_masks, is_mask_folder, log_masks, log_masks_beside_images
from fastcxr.errors import DataError
from fastcxr.io.files import read_json
from fastcxr.io.lock import LOCK_FILE_NAME
from fastcxr.io.tables import TEXT_DTYPE, format_names

log = logging.getLogger("fastcxr")
SYSTEM_NAMES = {"thumbs.db", "desktop.ini", "__macosx"}
SPLIT_ALIASES: dict[str, str] = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_ALIASES |= dict.fromkeys(("val", "valid", "validation"), "valid")
SEPARATOR = re.compile(r"[ _-]")
CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # between two words: JPEGImages
OUTPUT_FOLDERS = "output folders of fastcxr"
FileIdentity = tuple[int, int] | str
RUNS_DIR = "runs"  # default parent of output folders
MARKER_KEYS = {  # keys of the JSON files in output folders, the same since version 0.1
    "recipe.json": {"backbone", "leave_one_source_out"},
    "run.json": {"command", "versions", "machine"},
    "compare.json": {"rows", "patients"},
    "explain.json": {"method", "check"},
}


@dataclass(frozen=True)
class ClassFolder:
    """A folder whose images share a label; `path` is relative to the data folder."""

    path: str
    label: str
    split: str | None = None


@dataclass
class DirectoryWalk:
    """A walk through one data folder that enters every folder once and records what it skips."""

    root: str
    visited: set[FileIdentity] = field(default_factory=set)
    hidden: list[str] = field(default_factory=list)  # names of dot files and system files
    special: list[str] = field(default_factory=list)  # FIFOs, devices, sockets and broken links
    revisited: list[str] = field(default_factory=list)  # links to visited folders
    output_folders: list[str] = field(default_factory=list)
    inodes: list[int] = field(default_factory=list)  # of the files that are no links

    def __post_init__(self):
        self.mark_visited(self.root)

    def mark_visited(self, folder: str) -> None:
        """Mark a folder and its parents as visited: links to them are not followed."""
        resolved = Path(folder).resolve()
        self.visited |= {identify_file(path) for path in (resolved, *resolved.parents)}

    def list_entries(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the files and the links of a folder and its subfolders, as paths below the data folder."""
        files, links, pending = [], [], [folder]
        while pending:
            current = pending.pop()
            entries = _scan_folder(self.root, current)
            names = [entry.name for _, entry in entries]
            if current != folder and is_output_folder(f"{self.root}/{current}", names):
                self.output_folders.append(current)
                continue
            for path, entry in entries:
                if is_hidden(entry.name):
                    self.hidden.append(entry.name)
                elif entry.is_symlink():
                    links.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    self.visited.add(identify_file(entry.path))
                    pending.append(path)
                elif entry.is_file(follow_symlinks=False):
                    files.append(path)
                    self.inodes.append(entry.inode())
                else:
                    self.special.append(path)
        return files, links

    def follow_links(self, links: list[str]) -> list[str]:
        """Return the files that links lead to, except in visited folders; further links are followed too."""
        files, pending = [], sorted(links, reverse=True)
        while pending:
            link = pending.pop()
            mode = _read_mode(f"{self.root}/{link}")
            if stat.S_ISREG(mode):
                files.append(link)
            elif not stat.S_ISDIR(mode):
                self.special.append(link)
            elif identify_file(f"{self.root}/{link}") in self.visited:
                self.revisited.append(link)
            else:
                self.mark_visited(f"{self.root}/{link}")
                new_files, new_links = self.list_entries(link)
                files += new_files
                pending += sorted(new_links, reverse=True)
        return files

    def log_skipped(self, *, log_names: bool = True) -> None:
        """Log what the walk skipped, with a warning for special files."""
        hidden = [f"{name} ({n:,})" if n > 1 else name for name, n in Counter(self.hidden).items()]
        for level, paths, text, names in (
            (logging.INFO, self.hidden, "hidden or system files and folders", hidden),
            (logging.INFO, self.revisited, "links to folders already listed", self.revisited),
            (logging.INFO, self.output_folders, OUTPUT_FOLDERS, self.output_folders),
            (logging.WARNING, self.special, "special files (FIFO, device, socket, broken link)", self.special),
        ):
            if paths:
                shown = f": {format_names(sorted(names))}" if log_names else ""
                log.log(level, "skipped %s %s%s", f"{len(paths):,}", text, shown)


def is_hidden(name: str) -> bool:
    """Return whether a name is that of a dot file or of a system file."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


def identify_file(path: str | Path) -> FileIdentity:
    """Return an identity of a file or folder that is the same for all links to it."""
    status = os.stat(path)  # pathlib takes 10 times as long, for each image of a dataset
    return (status.st_dev, status.st_ino) if status.st_ino else str(Path(path).resolve())


def list_folders(root: str, subfolder: str = "") -> list[str]:
    """Return the names of the visible folders and links to folders, without output folders of fastcxr."""
    names = _list_visible_folders(root, subfolder)
    return [name for name in names if not is_made_by_fastcxr(_join_path(root, subfolder, name))]


def list_output_folders(root: str) -> list[str]:
    """Return the names of the output folders of fastcxr."""
    return [name for name in _list_visible_folders(root) if is_made_by_fastcxr(_join_path(root, name))]


def enter_only_folder(path: Path, name: str) -> Path:
    """Return the folder `name` inside a folder without other folders, as archives are unpacked, else the path."""
    return path / name if (path / name).is_dir() and list_folders(str(path)) == [name] else path


def find_split_folders(names: Iterable[str]) -> dict[str, str]:
    """Return the split of each folder called train, valid or test, or train_images if there is a test_images."""
    splits_by_rest: dict[str, dict[str, str]] = {}
    for name in names:
        words = SEPARATOR.split(name.casefold())
        aliases = [word for word in (words[0], words[-1]) if word in SPLIT_ALIASES]
        if aliases:
            is_split = set(words) <= {aliases[0], "set"}  # validation_set
            rest = "" if is_split else name.casefold().replace(aliases[0], "", 1)
            splits_by_rest.setdefault(rest, {})[name] = SPLIT_ALIASES[aliases[0]]
    return {
        name: split
        for rest, splits in splits_by_rest.items()
        for name, split in splits.items()
        if not rest or len(set(splits.values())) > 1
    }


def _list_visible_folders(root: str, subfolder: str = "") -> list[str]:
    return sorted(e.name for _, e in _scan_folder(root, subfolder) if not is_hidden(e.name) and _is_folder(e))


def _join_path(*parts: str) -> str:
    return "/".join(filter(None, parts))


def list_loose_files(root: str, subfolder: str = "") -> list[str]:
    """Return the names of the visible files in a folder, without those in its subfolders."""
    return sorted(e.name for _, e in _scan_folder(root, subfolder) if not is_hidden(e.name) and not _is_folder(e))


def list_split_files(root: Path, parents: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return split -> file name -> path below the root, from the first parent that has a folder of the split."""
    files: dict[str, dict[str, str]] = {}
    for parent in parents:
        for name in list_folders(str(root), parent) if (root / parent).is_dir() else ():
            split, folder = SPLIT_ALIASES.get(name.casefold()), _join_path(parent, name)
            if split and split not in files:
                files[split] = {file: f"{folder}/{file}" for file in list_loose_files(str(root), folder)}
    return files


def list_class_images(root: str | Path, folders: list[ClassFolder]) -> pd.DataFrame:
    """Return path, label, split and file of every file in the class folders, sorted by path.

    Raises:
        DataError: A class folder is empty, or a file has two labels (E008) or two splits (E009).
    """
    root = str(root)
    walk = DirectoryWalk(root)
    folders = _visit_class_folders(walk, root, folders)
    listed = [(folder, *walk.list_entries(folder.path)) for folder in folders]  # real folders before links
    rows = [(folder, path, False) for folder, files, _ in listed for path in files]
    rows += [(folder, path, True) for folder, _, links in listed for path in walk.follow_links(links)]
    walk.log_skipped()
    rows = _leave_out_masks(rows)
    _reject_empty_folders(root, folders, {folder for folder, _, _ in rows})
    files = sorted(_drop_repeated_files(root, rows), key=lambda row: row[1])
    reject_non_utf8_names(root, [path for _, path in files])
    records = [(path, folder.label, folder.split, f"{root}/{path}") for folder, path in files]
    return pd.DataFrame(records, columns=["path", "label", "split", "file"], dtype=TEXT_DTYPE)


def _leave_out_masks(rows: list[tuple[ClassFolder, str, bool]]) -> list[tuple[ClassFolder, str, bool]]:
    """Return the rows without masks in mask folders and beside their images; log the number of these."""
    in_folders = {path for folder, path, _ in rows if _has_mask_folder(path.removeprefix(folder.path))}
    names_by_folder: dict[str, list[str]] = {}
    for _, path, _ in rows:
        if path not in in_folders:
            folder_path, _, name = path.rpartition("/")
            names_by_folder.setdefault(folder_path, []).append(name)
    beside = {f"{folder}/{name}" for folder, names in names_by_folder.items() for name in find_masks(names)}
    if in_folders:
        log_masks(len(in_folders), {path.rpartition("/")[0] for path in in_folders})
    if beside:
        log_masks_beside_images(beside)
    masks = in_folders | beside
    return [row for row in rows if row[1] not in masks]


def _has_mask_folder(path: str) -> bool:
    return any(map(is_mask_folder, path.split("/")[:-1]))


def list_files_below(root: str | Path, *, log_names: bool = True) -> list[str]:
    """Return every file of a folder and its subfolders once, sorted, as paths below it; log what is skipped."""
    walk = DirectoryWalk(str(Path(root).absolute()))
    files, links = walk.list_entries("")
    linked = walk.follow_links(links)
    walk.log_skipped(log_names=log_names)
    files = sorted(files)
    if linked or len(set(walk.inodes)) < len(files):  # otherwise half a million files need not be opened one by one
        path_by_identity: dict[FileIdentity, str] = {}
        for path in [*files, *sorted(linked)]:
            path_by_identity.setdefault(identify_file(f"{walk.root}/{path}"), path)
        files = sorted(path_by_identity.values())
    reject_non_utf8_names(root, files)
    return files


def _visit_class_folders(walk: DirectoryWalk, root: str, folders: list[ClassFolder]) -> list[ClassFolder]:
    entered: dict[FileIdentity, ClassFolder] = {}
    for folder in folders:
        identity = identify_file(f"{root}/{folder.path}")
        if identity in entered:
            _reject_clashes(root, [(entered[identity], entered[identity].path, folder, folder.path)])
        if identity in walk.visited:  # a link to the data folder or its parents
            walk.revisited.append(folder.path)
        else:
            entered[identity] = folder
    for folder in entered.values():
        walk.mark_visited(f"{root}/{folder.path}")
    return list(entered.values())


def _drop_repeated_files(root: str, rows: list[tuple[ClassFolder, str, bool]]) -> list[tuple[ClassFolder, str]]:
    """Keep each file once, under its real path if that is listed, and log the other links to it."""
    first_by_identity: dict[FileIdentity, tuple[ClassFolder, str]] = {}
    clashes, repeated = [], []
    for folder, path, _ in sorted(rows, key=lambda row: (row[2], row[1])):
        kept = first_by_identity.setdefault(identify_file(f"{root}/{path}"), (folder, path))
        if (folder.label, folder.split) != (kept[0].label, kept[0].split):
            clashes.append((*kept, folder, path))
        elif path != kept[1]:
            repeated.append(path)
    _reject_clashes(root, clashes)
    if repeated:
        log.info("skipped %d links to files already listed: %s", len(repeated), format_names(repeated))
    return list(first_by_identity.values())


def _reject_clashes(root: str, clashes: list[tuple[ClassFolder, str, ClassFolder, str]]) -> None:
    reject_image_pairs(root, [(a, b) for one, a, two, b in clashes if one.label != two.label], "E008")
    reject_image_pairs(root, [(a, b) for one, a, two, b in clashes if one.label == two.label], "E009")


def reject_image_pairs(root: str | Path, pairs: list[tuple[str, str]], code: str) -> None:
    """Raise DataError for pairs of paths of the same image with two labels (E008) or in two splits (E009)."""
    if pairs:
        conflict, fix = {
            "E008": ("has two labels", "Keep one image of each pair: fastcxr trains one label per image"),
            "E009": ("is in two splits", "Keep one image of each pair: a test image must not be used for training"),
        }[code]
        examples = format_names([f"{one} = {two}" for one, two in pairs])
        raise DataError(f"the same image {conflict} in {len(pairs):,} pairs ({examples})", fix, path=root, code=code)


def _reject_empty_folders(root: str, folders: Iterable[ClassFolder], filled: set[ClassFolder]) -> None:
    if not filled:
        return  # the caller reports data without any image
    if empty := [folder.path for folder in folders if folder not in filled]:
        problem = f"class folders without files: {format_names(map(repr, empty))}"
        raise DataError(problem, "Add images, or remove the folders", path=root, code="E005")


def reject_non_utf8_names(root: str | Path, paths: Iterable[str]) -> None:
    """Raise DataError for names that are not UTF-8, which tables and reports cannot contain."""
    if undecodable := [path for path in paths if re.search(r"[\ud800-\udfff]", path)]:  # see os.fsdecode
        examples = format_names(map(repr, map(os.fsencode, undecodable)))
        fix = "Rename the files, e.g. with `convmv -f latin1 -t utf8 -r --notest FOLDER`"
        raise DataError(f"file names that are not UTF-8: {examples}", fix, path=root, code="E020")


def _scan_folder(root: str, folder: str) -> list[tuple[str, os.DirEntry]]:
    path = _join_path(root, folder)
    try:
        with os.scandir(path) as entries:
            return [(_join_path(folder, entry.name), entry) for entry in entries]
    except OSError as error:
        problem = f"the folder cannot be listed ({error.strerror})"
        raise DataError(problem, "Change its permissions (chmod +rx)", path=path, code="E026") from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _read_mode(path: str) -> int:
    try:
        return Path(path).stat().st_mode
    except OSError:  # a broken link, or a link to itself
        return 0


def is_made_by_fastcxr(folder: str) -> bool:
    """Return whether a folder is an output folder of fastcxr, or holds nothing else. A link never is."""
    try:
        return not os.path.islink(folder) and (is_output_folder(folder) or _holds_only_output_folders(folder))
    except OSError:  # reading the images raises it again
        return False


def is_output_folder(folder: str, names: Iterable[str] = MARKER_KEYS) -> bool:
    """Return whether one of the named files of a folder is a JSON file with the keys that fastcxr writes."""
    for name in MARKER_KEYS.keys() & set(names):
        if not os.path.isfile(f"{folder}/{name}"):  # the usual case, also of 20,000 folders of patients
            continue
        try:
            content = read_json(f"{folder}/{name}")
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.keys() >= MARKER_KEYS[name]:
            return True
    return False


def _holds_only_output_folders(folder: str) -> bool:
    """Return whether all visible entries are output folders; an empty folder counts if locked or named runs."""
    is_empty = True
    with os.scandir(folder) as entries:
        for entry in entries:  # stops at the first image: a class may have 100,000
            if not entry.name.startswith("."):
                is_empty = False
                if not (entry.is_dir(follow_symlinks=False) and is_made_by_fastcxr(entry.path)):
                    return False
    return not is_empty or Path(folder).name == RUNS_DIR or Path(folder, LOCK_FILE_NAME).is_file()
