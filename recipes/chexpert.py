"""CheXpert (Irvin 2019): 13 findings, and what becomes of the labels that a report calls uncertain.

Command      python recipes/chexpert.py u_ones --data CHEXPERT      (CHEXPERT: the folder as downloaded; or --all)
Data         train.csv: 223,414 images of 64,540 patients, labels extracted from reports: present, absent, uncertain
             (-1) or blank. valid.csv: 234 images of 200 patients, read by three radiologists, is the validation set of
             the paper
Paper        arXiv:1901.07031, table 3: AUROC on the validation set of an ensemble of 30 checkpoints, images of a study
             combined. Best values: atelectasis .858 and edema .941 (U-Ones), cardiomegaly .854 and pleural effusion
             .936 (U-MultiClass), consolidation .939 (U-SelfTrained; U-Zeros .932). The final model takes these choices
Limitations  This recipe trains one network and scores each image. U-SelfTrained and U-MultiClass are not available:
             the variant per_finding takes U-Ones for atelectasis and edema, as the paper, and ignores the uncertain
             labels of all others. The paper does not state what a blank label means: here it is read as absent, and
             --blank unknown leaves it out. 200 patients are too few to rank the variants: the paper calls two
             differences significant
Results      not run yet (no images)
"""

from fastcxr import Augmentation, Recipe, Stage, study_main

PLAIN = Augmentation(max_rotate=0.0, min_zoom=1.0, max_zoom=1.0, max_warp=0.0, max_lighting=0.0)
U_IGNORE = Recipe(
    "densenet121", image_size=320, task="multi_label", uncertain=("ignore",), loss="binary_cross_entropy",
    label_smoothing=0.0, epochs=3, batch_size=16, optimizer="adam", learning_rate=1e-4, schedule="constant",
    strategy=(Stage(name="all"),), augment=PLAIN,
)  # fmt: skip
RECIPES = {
    "u_ignore": U_IGNORE,
    "u_zeros": U_IGNORE.replace(uncertain=("negative",)),
    "u_ones": U_IGNORE.replace(uncertain=("positive",)),
    "per_finding": U_IGNORE.replace(uncertain=("ignore", "Atelectasis=positive", "Edema=positive")),
}

PAPER = {
    "u_zeros": {"Consolidation auroc": 0.932},
    "u_ones": {"Atelectasis auroc": 0.858, "Edema auroc": 0.941},
}

if __name__ == "__main__":
    study_main(RECIPES, PAPER)
