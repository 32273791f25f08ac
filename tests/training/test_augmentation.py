"""Augmented images equal those of fastai's transforms with the same random numbers."""

import random
from dataclasses import replace

import pytest
import torch
from fastai.torch_core import TensorImageBW
from fastai.vision.augment import AffineCoordTfm, aug_transforms, flip_mat
from fasttransform import Pipeline
from torch.nn.functional import interpolate

from fastcxr.config.recipe import Augmentation
from fastcxr.training.augmentation import RandomAugmentation
from fastcxr.training.loaders import seed_everything

SIZE = 64
NOTHING = Augmentation(max_rotate=0, max_zoom=1, min_zoom=1, max_warp=0, max_lighting=0)
OPTIONS = {
    "default": Augmentation(),
    "always": Augmentation(mult=2, p_affine=1.0, p_lighting=1.0),
    "flip": Augmentation(do_flip=True),
    "quarter turns": Augmentation(do_flip=True, flip_vert=True),
    "both flips": Augmentation(do_flip=True, flip_vert=True, quarter_turns=False),
    "bicubic, border": Augmentation(mode="bicubic", pad_mode="border"),
    "nearest": replace(NOTHING, max_lighting=0.2, mode="nearest"),
    "reflection": Augmentation(pad_mode="reflection", mult=3),
    "edges": Augmentation(align_corners=False),
    "same for all": Augmentation(batch=True, do_flip=True),
    "same turns for all": Augmentation(batch=True, do_flip=True, flip_vert=True),
    "crop": replace(NOTHING, min_scale=0.5),
    "crop after lighting": replace(NOTHING, min_scale=0.3, max_lighting=0.2),
    "nothing": NOTHING,
}


@pytest.fixture(scope="module")
def images() -> TensorImageBW:
    """Smooth images, so that a rounding error of a coordinate changes a pixel little."""
    noise = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return TensorImageBW(interpolate(noise, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1))


def make_fastai_transforms(options: Augmentation) -> list:
    """Return fastai's transforms; without quarter turns, its horizontal flip with x and y exchanged is added."""

    def flip_vertically(batch_images: torch.Tensor) -> torch.Tensor:
        return flip_mat(batch_images, p=0.5, batch=options.batch)[:, [1, 0, 2]][:, :, [1, 0, 2]]

    values, extra = dict(vars(options)), []
    if not values.pop("quarter_turns") and options.do_flip and options.flip_vert:
        values["flip_vert"], sampling = False, {name: values[name] for name in ("mode", "pad_mode", "align_corners")}
        extra = [AffineCoordTfm(flip_vertically, **sampling)]
    return aug_transforms(**values, size=SIZE if options.min_scale < 1 else None, xtra_tfms=extra)


def augment(transforms: list, images: TensorImageBW, seed: int, split: int = 0) -> tuple[torch.Tensor, tuple]:
    """Return the images after the transforms, and the state of the random number generators."""
    seed_everything(seed)
    augmented = Pipeline(transforms, split_idx=split)(images.clone())
    return augmented, (torch.get_rng_state().tolist(), random.getstate())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_images_and_random_numbers_are_those_of_fastai(images, options):
    for seed in range(4):
        expected, expected_state = augment(make_fastai_transforms(options), images, seed)
        augmented, state = augment([RandomAugmentation(options)], images, seed)
        assert type(augmented) is TensorImageBW
        assert state == expected_state
        torch.testing.assert_close(augmented, expected, atol=1e-4, rtol=0)


def test_a_crop_of_a_rotated_image_equals_two_interpolations_except_for_blurring(images):
    options = Augmentation(min_scale=0.5, max_lighting=0, pad_mode="border")
    twice, _ = augment(make_fastai_transforms(options), images, seed=1)
    once, _ = augment([RandomAugmentation(options)], images, seed=1)
    torch.testing.assert_close(once, twice, atol=0.03, rtol=0)
    assert not torch.equal(once, twice)


def test_a_crop_without_align_corners_covers_the_drawn_pixels():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    options = replace(NOTHING, min_scale=0.25, align_corners=False, pad_mode="border")
    for seed in range(20):
        random.seed(seed)
        length = round((random.uniform(0.25, 1) * 64) ** 0.5)
        random.random()
        random.randint(0, 8 - length)
        left = random.randint(0, 8 - length)
        cropped, _ = augment([RandomAugmentation(options)], TensorImageBW(ramp), seed)
        expected = interpolate(ramp[..., left : left + length], (8, 8), mode="bilinear", align_corners=False)
        inner = slice(2, 6)  # outside, the crop has pixels beyond its edge
        torch.testing.assert_close(cropped[0, 0, 0, inner], TensorImageBW(expected[0, 0, 0, inner]), atol=1e-4, rtol=0)


def test_validation_images_are_not_changed(images):
    augmented, _ = augment([RandomAugmentation(OPTIONS["always"])], images, seed=0, split=1)
    assert torch.equal(augmented, images)


@pytest.mark.parametrize(("quarter_turns", "n_orientations"), [(False, 4), (True, 8)])
def test_both_flips_are_drawn_independently_without_quarter_turns(quarter_turns, n_orientations):
    image = torch.rand(1, 1, 8, 8)
    options = replace(NOTHING, do_flip=True, flip_vert=True, quarter_turns=quarter_turns)
    images, _ = augment([RandomAugmentation(options)], TensorImageBW(image.expand(4000, -1, -1, -1)), seed=0)
    flipped = [image.flip(axes) for axes in ((), (3,), (2,), (2, 3))]
    transposed = [orientation.transpose(2, 3) for orientation in flipped]
    matches = [torch.isclose(images, expected, atol=1e-4).all(dim=(1, 2, 3)) for expected in flipped + transposed]
    shares = torch.tensor([match.float().mean() for match in matches])
    assert shares.sum() == pytest.approx(1)
    assert (shares > 0.03).sum() == n_orientations
    if not quarter_turns:
        torch.testing.assert_close(shares[:4], torch.full((4,), 0.25), atol=0.03, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["default", "quarter turns", "both flips", "edges"])
def test_mean_and_deviation_on_a_gpu_are_those_of_the_cpu(images, name):
    many = TensorImageBW(images[:1].expand(2000, -1, -1, -1))
    on_cpu, _ = augment([RandomAugmentation(OPTIONS[name])], many, seed=0)
    on_gpu, _ = augment([RandomAugmentation(OPTIONS[name])], many.cuda(), seed=0)
    for moment in (torch.mean, torch.std):
        torch.testing.assert_close(moment(on_gpu.cpu(), dim=0), moment(on_cpu, dim=0), atol=0.05, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["same for all", "same turns for all", "crop"])
def test_numbers_that_python_draws_give_the_same_images_on_a_gpu(images, name):
    on_cpu, _ = augment([RandomAugmentation(OPTIONS[name])], images, seed=1)
    on_gpu, _ = augment([RandomAugmentation(OPTIONS[name])], images.cuda(), seed=1)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-3, rtol=0)
