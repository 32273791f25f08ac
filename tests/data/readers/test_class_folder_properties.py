"""Property tests: random trees of class folders are read as planted, and folders of other kinds are never classes."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from layouts_class_folders import write_gray, write_mask
from toy_datasets import check_message, write_file

from fastcxr.data.manifest import read_manifest
from fastcxr.errors import FastcxrError

CLASSES = ["Covid-19", "Lung_Opacity", "No Finding", "Normal", "Pneumonia", "TB", "virus 2"]
SPLIT_NAMES = {  # names of the folders of each split
    "plain": {"train": "train", "valid": "val", "test": "test"},
    "words": {"train": "train_images", "test": "test_images"},
    "suffix": {"train": "xrays-Train", "valid": "xrays-Valid"},
}
NOT_CLASSES = {  # folders that are never classes
    "parts": ["images_001", "images_002", "images_003"],
    "batches": ["batch 1", "batch 2"],
    "patients": ["p10000032", "p10000764", "p9"],
    "more patients": ["patient00001", "patient00002"],
    "identifiers": ["04b1d7a8-9a5c-4e", "e0a75b91-3f2d-11", "1.2.840.1001.77"],
    "studies": ["s50414267", "s53189527"],
    "splits": ["train_images", "test_images"],
    "lists": ["stage_2_train_images", "stage_2_test_images"],
    "kinds": ["images", "labels"],
    "only masks": ["masks", "lung masks"],
    "one part": ["images_001"],
}
OTHER_KINDS = ["gray levels", "contradiction", "archives", "documents", "classes in classes"]


@dataclass
class Tree:
    """Files to write, and the label and split of each image if they are known from the folders."""

    images: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # path to label and split
    masks: list[str] = field(default_factory=list)
    others: dict[str, bytes] = field(default_factory=dict)

    def write(self, root: Path) -> Path:
        for number, path in enumerate(self.images):
            write_gray(root / path, number)
        for number, path in enumerate(self.masks):
            write_mask(root / path, number)
        for path, content in self.others.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            write_file(root / path, content)
        return root


@st.composite
def class_trees(draw) -> Tree:
    """Draw class folders, also below splits, with masks, archives, documents and tables that do not contradict them."""
    labels = draw(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=4, unique=True))
    splits = draw(st.sampled_from([{"": ""}, *SPLIT_NAMES.values()]))
    subfolder, mask = (
        draw(st.sampled_from(["", "images/", "a/b/"])),
        draw(st.sampled_from(["", "masks/", "Lung_masks/"])),
    )
    tree = Tree()
    for split, folder in splits.items():
        for k, label in enumerate(labels):
            parent = f"{folder}/{label}/".lstrip("/")
            for i in range(draw(st.integers(2, 3))):
                name = f"{split}{k}_{i}.png"
                tree.images[f"{parent}{subfolder}{name}"] = (label, split or None)
                tree.masks += [f"{parent}{mask}{name}"] * bool(mask)
    tree.masks += draw(st.sampled_from([[], ["masks/all.png"], ["lung segmentations/x/all.png"]]))
    tree.others |= draw(st.sampled_from([{}, {"images.zip": b"PK\x03\x04"}, {"README.pdf": b"%PDF"}]))
    lines = "".join(f"{path},{label}\n" for path, (label, _) in tree.images.items())
    tree.others |= draw(
        st.sampled_from([{}, {"sizes.csv": b"path,width\n"}, {"labels.csv": f"path,label\n{lines}".encode()}])
    )
    return tree


@st.composite
def other_trees(draw) -> Tree:
    """Draw folders of which one or more are no class: parts, patients, studies, splits, masks, archives, documents."""
    tree = Tree()
    kind = draw(
        st.sampled_from([*NOT_CLASSES, "gray levels", "contradiction", "archives", "documents", "classes in classes"])
    )
    event(kind)
    names = NOT_CLASSES.get(kind, draw(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=3, unique=True)))
    names = [*names, *draw(st.sampled_from([[], ["Normal"]]))] if kind in ("parts", "kinds", "patients") else names
    prefix = draw(st.sampled_from(["", "train/"])) if kind in ("parts", "patients", "studies", "kinds") else ""
    depths = {"classes in classes": ["ill/", "well/"]}.get(kind, [draw(st.sampled_from(["", "images/", "s1/"]))])
    paths = [f"{prefix}{name}/{depth}{k}_{i}.png" for k, name in enumerate(names) for depth in depths for i in range(2)]
    if kind == "gray levels":
        tree.masks = paths[-2:]
    if kind == "archives":
        tree.others, paths = {"a.zip": b"PK\x03\x04", "b.tar.gz": b"\x1f\x8b"}, []
    if kind == "documents":
        tree.others["about/licence.txt"] = b"free"
    if kind == "contradiction":
        tree.others["table.csv"] = f"file name,class\n{paths[0]},another\n".encode()
    tree.images = {path: ("never", None) for path in paths if path not in tree.masks}
    if draw(st.booleans()) and kind != "archives":
        tree.others["notes.zip"] = b"PK\x03\x04"
    return tree


@settings(max_examples=40, deadline=None)
@given(class_trees())
def test_class_folders_are_read_as_planted(tree):
    with tempfile.TemporaryDirectory() as folder:
        rows = read_manifest(tree.write(Path(folder, "inner/data")), only_test=True)
    splits = rows["split"].astype("object").where(rows["split"].notna(), None)
    assert dict(zip(rows["path"], zip(rows["label"], splits, strict=True), strict=True)) == tree.images


@settings(max_examples=60, deadline=None)
@given(other_trees())
def test_other_folders_are_an_error_with_one_line(tree):
    with tempfile.TemporaryDirectory() as folder, pytest.raises(FastcxrError) as caught:
        read_manifest(tree.write(Path(folder, "inner/data")), only_test=True)
    check_message(caught.value)
