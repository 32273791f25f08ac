"""Find signs in the names of folders that they are not classes: splits, parts, kinds of files, datasets, patients."""

import re
from collections.abc import Iterable, Sequence

from fastcxr.data.readers.folders import CAMEL_CASE, SPLIT_ALIASES
from fastcxr.io.tables import format_names

SPLIT_WORDS = {
    *SPLIT_ALIASES, "dev", "development", "eval", "evaluation", "external", "holdout", "internal", "labeled",
    "labelled", "seen", "unlabeled", "unlabelled", "unseen",
}  # fmt: skip
# words of folder names in the singular
KIND_WORDS = {
    *SPLIT_WORDS, "annotation", "archive", "augmented", "backup", "bbox", "bmp", "bounding", "box", "boxes", "cam",
    "code", "contour", "copy", "csv", "cxr", "data", "database", "dataset", "dcm", "dicom", "doc", "document",
    "enhanced", "extra", "file", "grad", "gradcam", "heat", "image", "img", "jpeg", "jpg", "json", "label", "map",
    "mask", "metadata", "misc", "original", "overlay", "pdf", "photo", "png", "raw", "ray", "report", "saliency",
    "script", "seg", "segmentation", "segmented", "text", "thumbnail", "tif", "tiff", "txt", "xlsx", "xml", "xray",
    "zip",
}  # fmt: skip
PART_WORDS = {  # followed by a number, or beside another word of this list or of the list above
    "batch", "case", "cd", "center", "centre", "chunk", "clinic", "disk", "exam", "fold", "folder", "hospital", "id",
    "p", "part", "pat", "patient", "person", "pid", "pt", "s", "series", "session", "set", "shard", "site", "study",
    "sub", "subj", "subject", "visit", "volume",
}  # fmt: skip
ORDINALS = {
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "first", "second", "third", "fourth", "fifth", "last",
}  # fmt: skip
DATASET_WORDS = {"archive", "collection", "data", "database", "dataset", "file", "segmentation", "set"}  # at the end
COMPOUND = re.compile(rf"({'|'.join(SPLIT_WORDS)}|heat)(sets?|data|maps?)")
FILLER_WORDS = {"all", "chest", "stage", "x"}  # without a meaning for the content: stage_2_train_images
LABEL_WORD = re.compile(  # words for findings and for healthy patients, or how they begin, in some languages
    r"(mass(es)?|neg|no|pos|tb|tbc)$|abnormal|atelect|bacteri|benign|calcif|cancer|cardiomeg|consolid|control|covid"
    r"|edema|effusion|emphysem|fibros|fractur|gesund|health|hernia|infiltr|krank|lesion|malign|negativ|neumon|nodul"
    r"|norm|oedema|opaci|pneumo|positiv|sain|sano|sars|saud|sick|tubercul|tumou?r|viral|virus"
)
IDENTIFIER = re.compile(r"(?=.*\d)[0-9a-f.-]{12,}", re.IGNORECASE)  # UUID, UID or hash
CODE = re.compile(r"[a-z]\d{3,}|(?=.*\d)[a-z]{0,2}\d*([ _-][a-z]{0,2}\d*)+", re.IGNORECASE)  # A001, P1-M45
DATE = re.compile(r"(19|20)\d\d([._-]?)(0?[1-9]|1[0-2])(\2(0?[1-9]|[12]\d|3[01]))?|\d\d?[._-]\d\d?[._-](19|20)?\d\d")
VISIT = re.compile(r"(exam|s|series|session|study|visit)[ _-]?\d+", re.IGNORECASE)
MAX_CLASSES = 200  # PadChest, the dataset with the most findings, has 174


def find_name_sign(labels: Iterable[str]) -> str | None:
    """Return why names are not those of classes, or None."""
    labels = sorted(labels)
    if len(labels) > 1 and differ_in_number(labels):
        return f"{quote_names(labels)} differ only in a number"
    for is_named, things in ((_is_kind, "files, parts or patients"), (_is_dataset, "datasets")):
        if named := list(filter(is_named, labels)):
            return f"{quote_names(named)} {'are names' if len(named) > 1 else 'is a name'} of {things}"
    is_coded = len(labels) > 1 and all(map(CODE.fullmatch, labels)) and not any(map(has_label_word, labels))
    if labels and (is_coded or all(map(IDENTIFIER.fullmatch, labels))):
        return f"{quote_names(labels)} are identifiers"
    if variant := _find_variant(labels):
        return f"{variant[0]!r} is a name of other versions of the images of {variant[1]!r}"
    return f"there are {len(labels):,} folders" if len(labels) > MAX_CLASSES else None


def has_label_word(name: str) -> bool:
    """Return whether a name contains a word for a finding or for healthy patients."""
    return any(map(LABEL_WORD.match, split_words(name)))


def are_visits(names: Sequence[str]) -> bool:
    """Return whether all names, at least one, are dates or numbered studies, series or visits."""
    return len(names) > 0 and all(DATE.fullmatch(name) or VISIT.fullmatch(name) for name in names)


def differ_in_number(names: Iterable[str]) -> bool:
    """Return whether names are equal without their digits."""
    return len({re.sub(r"\d+", "#", name) for name in names}) == 1


def quote_names(names: Iterable[str]) -> str:
    """Return at most five names in quotation marks."""
    return format_names(map(repr, names), 5)


def split_words(name: str) -> list[str]:
    """Return the words of a folder name in lower case, without digits: trainSet_2 gives train and set."""
    words = re.findall(r"[^\W\d_]+", CAMEL_CASE.sub(" ", name).casefold())
    return [part for word in words for part in _split_set(word)]


def _split_set(word: str) -> tuple[str, ...]:
    """Return the words of a compound such as trainset or testdata."""
    match = COMPOUND.fullmatch(word)
    return (match[1], match[2]) if match else (word,)


def _is_in(word: str, words: set[str]) -> bool:
    return word in words or word.removesuffix("s") in words


def _is_kind(label: str) -> bool:
    """Return whether a name consists of words for kinds of files, or also of those for numbered parts and patients."""
    words = [word for word in split_words(label) if word not in FILLER_WORDS]
    others = [word for word in words if not _is_in(word, KIND_WORDS)]
    return bool(words) and (not others or _is_part(label))


def _is_part(label: str) -> bool:
    """Return whether a name consists of words for kinds and parts, with a number, an ordinal or a letter: set_a."""
    words = [word for word in split_words(label) if word not in FILLER_WORDS]
    named = [word for word in words if _is_in(word, KIND_WORDS | PART_WORDS)]
    counted = [word for word in words if word in ORDINALS or (len(word) == 1 and word not in named)]
    is_counted = bool(counted) or re.search(r"\d", label) is not None or any(_is_in(word, KIND_WORDS) for word in named)
    return bool(named) and is_counted and len(named) + len(counted) == len(words)


def _is_dataset(label: str) -> bool:
    """Return whether a name ends with a word for a dataset, or contains segmentation, and names no finding."""
    words = split_words(label)
    is_named = bool(words) and (_is_in(words[-1], DATASET_WORDS) or "segmentation" in words)
    return is_named and not has_label_word(label)


def _find_variant(labels: Sequence[str]) -> tuple[str, str] | None:
    """Return a name and another that it extends by words for kinds, as normal_augmented extends normal."""
    words_by_label = {label: split_words(label) for label in labels}
    label_by_words = {tuple(words): label for label, words in words_by_label.items()}
    for label, words in words_by_label.items():
        others = tuple(word for word in words if not _is_in(word, KIND_WORDS))
        if others and len(others) < len(words) and others in label_by_words:
            return label, label_by_words[others]
    return None
