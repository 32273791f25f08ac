"""Words of other libraries for the options of a recipe, to suggest an option for an unknown name."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

MIN_SIMILARITY = 0.7  # "lr" and "sampler" have 0.44, "epoch" and "epochs" 0.91
# options of a recipe, by words that other libraries and programs use for them
RECIPE_SYNONYMS = {
    "learning_rate": "lr rate lrate lr-rate learn-rate learningrate base-lr max-lr",
    "batch_size": "bs batch batchsize train-batch-size",
    "image_size": "size img-size imgsize image-sz img-sz sz input-size resolution resize",
    "epochs": "num-epochs n-epochs n-epoch max-epochs epoch-count",
    "backbone": "model arch architecture network net model-name encoder name",
    "data": "dataset datasets data-dir data-path data-root dataset-path train-dir input root images folder csv path",
    "weights": "pretrained checkpoint ckpt load init from-weights weights-path pretrained-weights",
    "device": "gpu gpus cuda cpu use-gpu use-cuda accelerator",
    "precision": "amp fp16 bf16 half mixed-precision dtype to-fp16",
    "workers": "num-workers n-workers nworkers jobs threads num-proc",
    "optimizer": "opt optim opt-func",
    "weight_decay": "wd decay l2",
    "schedule": "scheduler lr-schedule lr-scheduler sched",
    "loss": "loss-func criterion loss-function",
    "label_smoothing": "smoothing ls",
    "classes": "class labels label class-names",
    "folds": "k kfold k-fold cv n-folds num-folds cross-validation",
    "seed": "random-seed random-state rng",
    "patience": "early-stopping early-stop",
    "strategy": "freeze mode fine-tune finetune transfer unfreeze",
    "augment.do_flip": "flip hflip horizontal-flip",
    "reuse_split": "split-from same-split",
    "split": "split-by group-by",
    "patient_table": "patients metadata patient-csv",
    "patient_regex": "patient-pattern patient-id",
    "hflip_tta": "tta test-time-augmentation",
    "skip_bad": "ignore-errors skip-errors skip-unreadable",
    "abstain_rate": "abstain reject-rate",
}


def suggest_option_name(word: str, names: Iterable[str], synonyms: Mapping[str, str]) -> str | None:
    """Return the name with the meaning of an unknown word, else the name with the most similar spelling, or None.

    `synonyms`: the words of each name, the preferred name first. A word that has a meaning is not compared by spelling.
    """
    known_names, word = set(names), _normalize(word)
    by_meaning = [name for name, words in synonyms.items() if word in words.split()]
    if by_meaning:
        return next((name for name in by_meaning if name in known_names), None)
    spellings = {_normalize(name): name for name in sorted(known_names)}
    close = get_close_matches(word, spellings, n=1, cutoff=MIN_SIMILARITY)
    return spellings[close[0]] if close else None


def _normalize(name: str) -> str:
    return name.strip("-").replace("_", "-").lower()
