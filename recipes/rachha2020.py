"""Rachha 2020: eight backbones on COVID-19, No-Findings and Pneumonia, and three strategies for one of them.

Command      python recipes/rachha2020.py efficientnet_b7 --data DIR      (or --all)
Data         train 454 / 610 / 418 and test 41 / 94 / 82 images of the three classes, from several public datasets
Paper        B7: accuracy 94.93 %, AUROC .9987; top-2 accuracy at least 99 % for all backbones; no intervals.
             Precision, recall and F1 of B7: COVID-19 .95 / 1.00 / .98, No-Findings .89 / 1.00 / .94, Pneumonia
             1.00 / .83 / .91
Limitations  The paper selects the model on the 217 images that it reports; it has no test set. This recipe selects on
             the validation split, scores the test split once and groups by patient, so lower values are expected
Results      mobilenetv2, one core, 57 minutes, dataset of Ozturk et al. 2020 (124 / 500 / 500 images), 172 test images
             of 117 patients: accuracy 84.3 % (77.9 to 89.1), AUROC .954 (.920 to .974), top-2 accuracy 99.4 % (95.8
             to 99.9). Precision, recall, F1: COVID-19 .91 / .95 / .93, No-Findings .78 / .85 / .82, Pneumonia .88 /
             .81 / .84:
               python recipes/rachha2020.py mobilenetv2 --data OZTURK --patient-table TABLE --weights FILE
             The learning rate finder selected 1.9e-4 (head), 1.7e-3 (upper layers) and 4.8e-4 (all layers).
             --strategy linear_probe gives 82.6 % (76.1 to 87.6), AUROC .951 (.918 to .971), in seconds.
             Measured before the first layers computed in float32. All other variants: not run yet
"""

from fastcxr import Augmentation, Recipe, study_main

BASE = Recipe(
    strategy="gradual", epochs=50, batch_size=32, image_size=224, optimizer="radam", loss="label_smoothing",
    learning_rate="find",
    # default transforms of fastai, with both flips
    augment=Augmentation(
        do_flip=True, flip_vert=True, max_rotate=10.0, min_zoom=1.0, max_warp=0.2, pad_mode="reflection"
    ),
)  # fmt: skip

BACKBONES = {
    "efficientnet_b7": "efficientnet_b7",
    "efficientnet_b4": "efficientnet_b4",
    "resnet152": "resnet152",
    "resnet101": "resnet101",
    "densenet169": "densenet169",
    "densenet201": "densenet201",
    "mobilenetv2": "mobilenetv2_100",
    "vgg19_bn": "vgg19_bn",
    "vgg16": "vgg16",
}

RECIPES = {variant: BASE.replace(backbone=name) for variant, name in BACKBONES.items()} | {
    # the paper trains all backbones with "fine": --all trains resnet101 once and shows its metrics in both rows
    f"{strategy}_resnet101": BASE.replace(backbone="resnet101", strategy=strategy)
    for strategy in ("shallow", "deep", "fine")
}

PAPER = {
    "efficientnet_b7": {
        "accuracy": 0.9493, "auroc": 0.9987,
        "COVID-19 precision": 0.95, "COVID-19 recall": 1.00, "COVID-19 f1": 0.98,
        "No-Findings precision": 0.89, "No-Findings recall": 1.00, "No-Findings f1": 0.94,
        "Pneumonia precision": 1.00, "Pneumonia recall": 0.83, "Pneumonia f1": 0.91,
    },
    "efficientnet_b4": {"accuracy": 0.9216, "auroc": 0.9622},
    "resnet152": {"accuracy": 0.9447, "auroc": 0.9833},
    "resnet101": {"accuracy": 0.9124, "auroc": 0.9947},
    "densenet169": {"accuracy": 0.9032, "auroc": 0.9997},
    "densenet201": {"accuracy": 0.9078, "auroc": 0.9967},
    "mobilenetv2": {"accuracy": 0.9032, "auroc": 0.9966},
    "vgg19_bn": {"accuracy": 0.9124, "auroc": 0.9994},
}  # fmt: skip

if __name__ == "__main__":
    study_main(RECIPES, PAPER)
