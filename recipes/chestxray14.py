"""ChestX-ray14: 14 findings of the NIH images, after Wang 2017 and CheXNet (Rajpurkar 2017), on the official split.

Command      python recipes/chestxray14.py chexnet --data NIH      (NIH: the folder as downloaded; or --all)
Data         112,120 frontal images of 30,805 patients, 14 findings extracted from reports by a program, several per
             image; official test list of 25,596 images. A part of the training patients is the validation split
Paper        AUROC, mean of 14 findings: Wang .738 (arXiv:1705.02315, ResNet50, as listed in table 2 of CheXNet),
             CheXNet .841 (arXiv:1711.05225v3, DenseNet121, 224 px). On the official split: DenseNet121 .822, ViT-S
             .823 and ViT-B .830 (README of medical_mae), EVA-X tiny, small and base .824, .833 and .835 (README of
             EVA-X). None states intervals
Limitations  CheXNet draws its own split (70, 10 and 20 % of the patients), Wang and this recipe use the official one:
             compare with .822 rather than .841. The labels of the test split are those of the same program, so its
             errors are learned and rewarded. Wang pools with log-sum-exp at 1,024 px, this recipe with the mean at 224
             px. CheXNet divides the learning rate by ten when the validation loss stops decreasing, this recipe at
             fixed epochs. View and findings are confounded: run the audit
Results      not run yet (no images)
"""

from fastcxr import Augmentation, Recipe, Stage, study_main

PLAIN = Augmentation(max_rotate=0.0, min_zoom=1.0, max_zoom=1.0, max_warp=0.0, max_lighting=0.0)
FLIP = Augmentation(do_flip=True, max_rotate=0.0, min_zoom=1.0, max_zoom=1.0, max_warp=0.0, max_lighting=0.0)
CHEXNET = Recipe(
    "densenet121", image_size=224, task="multi_label", loss="binary_cross_entropy", label_smoothing=0.0,
    epochs=12, batch_size=16, optimizer="adam", learning_rate=1e-3, schedule="step", step_epochs=4, step_factor=0.1,
    strategy=(Stage(name="all"),), monitor="valid_loss", augment=FLIP,
)  # fmt: skip
# positive and negative images of a finding have the same weight
WANG = CHEXNET.replace(backbone="resnet50", class_weights="balanced", augment=PLAIN)

RECIPES = {
    "wang": WANG,
    "chexnet": CHEXNET,
    "chexnet_asymmetric": CHEXNET.replace(loss="asymmetric"),
}

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
AUROC = {
    "wang": (0.716, 0.807, 0.784, 0.609, 0.706, 0.671, 0.633, 0.806, 0.708, 0.835, 0.815, 0.769, 0.708, 0.767),
    "chexnet": (
        0.8094, 0.9248, 0.8638, 0.7345, 0.8676, 0.7802, 0.7680, 0.8887, 0.7901, 0.8878, 0.9371, 0.8047, 0.8062, 0.9164,
    ),
}  # fmt: skip
PAPER = {
    variant: {"auroc": round(sum(values) / len(values), 4)}
    | {f"{finding} auroc": value for finding, value in zip(FINDINGS, values, strict=True)}
    for variant, values in AUROC.items()
}

if __name__ == "__main__":
    study_main(RECIPES, PAPER)
