"""Comparison of results that are bit-identical on a CPU, and equal within a tolerance on a GPU."""

import numpy as np

from fastcxr.models.devices import find_device

GPU_TOLERANCE = 1e-4  # of probabilities and features in float32: sums of other batches have another order


def assert_identical(found: np.ndarray, expected: np.ndarray, cpu_tolerance: float = 0.0) -> None:
    """Check that two arrays of the default device are equal within GPU_TOLERANCE, on a CPU within `cpu_tolerance`."""
    tolerance = cpu_tolerance if find_device("auto").type == "cpu" else GPU_TOLERANCE
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
