"""Lopez and Salazar 2023: COVID-19 against normal from one shuffled HDF5 file, with frozen bases.

Command   fastcxr pack DIR --to cohort.h5 --shuffle
          python recipes/lopez2023.py mobilenet --data cohort.h5      (or --all)
Data      1,695 COVID-19 and 1,827 normal images, shuffled together and then split
Paper     accuracy .55 (ResNet50, mean squared error) and .9733 (MobileNet, binary cross-entropy). Its confusion matrix
          of MobileNet, 168 / 11 / 0 / 96, is 96.0 %, not 97.33
Beware    images were split without asking whose they are; here patients stay apart. --split image gives the paper's way
Here      MobileNetV2 as the base of both, one core, CoronaHack's two classes (96 and 1,165 images), patients apart, 207
          test images of 180 patients:
            resnet50   92.3 % (84.2 to 96.4), AUROC .500: every image is called normal
            mobilenet  206 of 207 right (96.7 to 99.9 %), AUROC 1.000 (.896 to 1)
          by
            fastcxr pack CORONAHACK --classes Normal --classes COVID-19 --shuffle --to cohort.h5
            python recipes/lopez2023.py VARIANT --data cohort.h5 --backbone mobilenetv2_100 --weights FILE
          Squared error of a sigmoid has hardly a gradient where the sigmoid is nearly 0 or 1: after the first of its 20
          epochs resnet50 says normal of all it sees, and never learns more. The paper's .55 of nearly equal classes may
          be the same
          No finding about a disease: class and source are one (adults from everywhere, children of one hospital)
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
