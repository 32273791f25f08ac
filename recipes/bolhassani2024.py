"""Bolhassani 2024: class imbalance on the four classes of CoronaHack, and bacterial against viral pneumonia.

Command      python recipes/bolhassani2024.py PRFL --data CORONAHACK      (as downloaded; or --all)
             Only the variants ending in _covid use a second dataset: --data CORONAHACK --data COHEN. For the whole
             study, run --all once with each: variants for another number of datasets are skipped
Data         Normal 1,575, Bacteria 2,778, Virus 1,494, COVID-19 82
Paper        test accuracy, mean over epochs: PRCE 62.1 %, PRCW 80.2 %, PRFL 75.5 %, PDCXCE 80.0 %, PDCXFL 75.56 %, RCE
             71.11 %. The paper's second table repeats the first, so it has no result for the additional images. Class
             weights are a sampler in its section 2.6 and a loss in 4.1.2: both are variants (PRCE_sampler, PRCW)
Limitations  Class and source are confounded: normal and pneumonia images show children of one hospital, COVID-19 images
             show adults of many. A model trained on them predicts COVID-19 for normal radiographs of adults
Results      pretrained ResNet50 and DenseNet121: not run yet. MobileNetV2 instead, two cores, 754 held-out test images
             of 420 patients: accuracy 84.1 % (80.8 to 86.9), AUROC .954 (.940 to .965):
               fastcxr train mobilenetv2_100 --data CORONAHACK --weights FILE
             With --strategy linear_probe: 83.2 % (79.7 to 86.1), AUROC .950 (.936 to .961). This model finds 97.4 % of
             the normal radiographs here, and 5.4 % (3.5 to 8.1) of the 500 of Ozturk et al.; it predicts COVID-19 for
             348 of these:
               fastcxr evaluate RUN --data OZTURK --relabel No_findings=Normal --classes Normal
             Variants at 128 px instead of 224, 20 epochs, the same test images; PRCE took 20 minutes on one core.
             Accuracy, AUROC, sensitivity for virus and COVID-19:
               PRCE          81.8 % (77.8 to 85.2), AUROC .950 (.934 to .962); virus .585, COVID-19 11 of 16
               PRCW          81.0 % (77.4 to 84.2), AUROC .949 (.933 to .961); virus .665, COVID-19 16 of 16
               PRFL          82.2 % (78.9 to 85.1), AUROC .952 (.938 to .963); virus .585, COVID-19 15 of 16
               PRCE_sampler  81.3 % (77.7 to 84.5), AUROC .942 (.925 to .956); virus .560, COVID-19 16 of 16
               PRFL_sampler  81.6 % (77.8 to 84.8), AUROC .948 (.932 to .961); virus .675, COVID-19 16 of 16
               RCE           78.2 % (74.1 to 81.9), AUROC .936 (.919 to .950); virus .620, COVID-19 13 of 16
               PRCE_binary   77.9 % (73.1 to 82.1), AUROC .832 (.783 to .871); these three: 547 images of 240 patients
               PRFL_binary   74.6 % (69.4 to 79.2), AUROC .811 (.757 to .855)
               RCE_binary    75.0 % (69.9 to 79.4), AUROC .794 (.740 to .840)
               PRCW_sampler, RCE_sampler, PRCW_binary: not run yet
             by (RCE and RCE_binary, a ResNet50 as published, without --backbone and --weights; 55 and 40 minutes)
               python recipes/bolhassani2024.py VARIANT --data CORONAHACK --backbone mobilenetv2_100 --weights FILE
               --image-size 128
             An earlier version that also rotated images by 90 degrees gave 81.8, 80.8 and 82.0 % for PRCE, PRCW and
             PRFL. The _covid variants have no result: CoronaHack contains all 96 frontal COVID-19 images of the
             collection of Cohen et al. (April 2020), and exact duplicates are removed.
             Most errors are between bacteria and virus: 56 to 68 % of 200 virus images are found.
             Bacteria against virus, MobileNetV2, 547 test images of 240 patients: 77.7 % (73.2 to 81.6), AUROC .831
             (.785 to .869), in an earlier version:
               fastcxr train mobilenetv2_100 --data CORONAHACK --weights FILE --classes Bacteria --classes Virus
             With --strategy linear_probe: 79.9 % (75.5 to 83.7), AUROC .840 (.795 to .877).
             The goals of 88 % and AUROC .90 were not reached: the two pneumonias of children have similar radiographs,
             there are 2,272 training images, and the network is small, at 224 px. Fine-tuning raised the validation
             AUROC from .778 to .810 and did not change the test AUROC. Linear probes with --image-size 384 gave 80.5 %,
             .949 and 77.0 %, .841
"""

from fastcxr import Augmentation, Recipe, Stage, study_main

BASE = Recipe(
    "resnet50", classes=("Normal", "Bacteria", "Virus", "COVID-19"),
    epochs=20, optimizer="adam", learning_rate=1e-3, strategy=(Stage(name="all"),),
    schedule="step", step_epochs=10, step_factor=0.5, loss="cross_entropy",
    # rotation with probability 0.3; each flip independently with 0.5; no other transform
    augment=Augmentation(
        do_flip=True, flip_vert=True, quarter_turns=False, max_rotate=10.0, p_affine=0.3, min_zoom=1.0, max_zoom=1.0,
        max_warp=0.0, max_lighting=0.0,
    ),
)  # fmt: skip
# --weights FILE takes a checkpoint of CheXNet with 14 findings: its backbone is loaded, the head of four classes is new
CHEXNET = BASE.replace(backbone="densenet121", weights="xrv:densenet121-res224-nih")
PNEUMONIA_CLASSES = ("Bacteria", "Virus")

FOUR_CLASSES = {
    "PRCE": BASE,
    "PRCW": BASE.replace(class_weights="balanced"),
    "PRFL": BASE.replace(loss="focal"),
    "PDCXCE": CHEXNET,
    "PDCXFL": CHEXNET.replace(loss="focal"),
    "RCE": BASE.replace(weights="none", loss="focal"),
}
SAMPLED = {f"{variant}_sampler": recipe.replace(sampler="weighted") for variant, recipe in FOUR_CLASSES.items()}
# only the frontal COVID-19 images of the second dataset
EXTRA = {
    f"{variant}_covid": recipe.replace(filter=("view=PA,AP,AP Supine",)) for variant, recipe in FOUR_CLASSES.items()
}
BINARY = {f"{variant}_binary": recipe.replace(classes=PNEUMONIA_CLASSES) for variant, recipe in FOUR_CLASSES.items()}

RECIPES = FOUR_CLASSES | SAMPLED | EXTRA | BINARY
# number of datasets per variant: only the _covid variants use images of the second dataset
SOURCES = {variant: 2 if variant in EXTRA else 1 for variant in RECIPES}

PAPER = {
    "PRCE": {"accuracy": 0.621},
    "PRCW": {"accuracy": 0.802},
    "PRCE_sampler": {"accuracy": 0.802},  # PRCW as a sampler
    "PRFL": {"accuracy": 0.755},
    "PDCXCE": {"accuracy": 0.80},
    "PDCXFL": {"accuracy": 0.7556},
    "RCE": {"accuracy": 0.7111},
}

if __name__ == "__main__":
    study_main(RECIPES, PAPER, SOURCES)
