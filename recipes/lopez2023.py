"""Lopez and Salazar 2023: COVID-19 against normal from one shuffled HDF5 file, with frozen backbones.

Command      fastcxr pack DIR --to dataset.h5 --shuffle
             python recipes/lopez2023.py mobilenet --data dataset.h5      (or --all)
Data         1,695 COVID-19 and 1,827 normal images, shuffled and then split
Paper        accuracy .55 (ResNet50, mean squared error) and .9733 (MobileNet, binary cross-entropy). The paper's
             confusion matrix of MobileNet, 168 / 11 / 0 / 96, gives 96.0 %, not 97.33 %
Limitations  The paper splits images and ignores patients. This recipe groups by patient; --split image gives the
             paper's split. Class and source are confounded (adults of many hospitals, children of one hospital), so
             the results are not evidence about a disease
Results      MobileNetV2 as the backbone of both variants, one core, two classes of CoronaHack (96 and 1,165 images),
             grouped by patient, 207 test images of 180 patients:
               resnet50   92.3 % (84.2 to 96.4), AUROC .500: the model predicts normal for all images
               mobilenet  206 of 207 correct (96.7 to 99.9 %), AUROC 1.000 (.896 to 1)
             by
               fastcxr pack CORONAHACK --classes Normal --classes COVID-19 --shuffle --to dataset.h5
               python recipes/lopez2023.py VARIANT --data dataset.h5 --backbone mobilenetv2_100 --weights FILE
             The gradient of the squared error of a sigmoid vanishes near 0 and 1: from the first of its 20 epochs,
             resnet50 predicts normal for all images and does not improve. This may also explain the paper's .55
"""

from fastcxr import Recipe, Stage, study_main

BASE = Recipe(
    "resnet50", epochs=20, batch_size=32, optimizer="adam", learning_rate=1e-3, schedule="constant",
    strategy=(Stage(name="head", groups=1),),
)  # fmt: skip

RECIPES = {
    # three dense layers and three dropouts before the sigmoid
    "resnet50": BASE.replace(loss="mse", head_hidden=(512, 256, 128), dropout=0.5),
    # three dense layers
    "mobilenet": BASE.replace(backbone="mobilenetv1_100", loss="binary_cross_entropy", head_hidden=(512, 256, 128)),
}

PAPER = {"resnet50": {"accuracy": 0.55}, "mobilenet": {"accuracy": 0.9733}}

if __name__ == "__main__":
    study_main(RECIPES, PAPER)
