"""Several functions are minimized at once, each as if it were alone."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as minimize_one

from fastcxr.training import lbfgs
from fastcxr.training.lbfgs import apply_inverse_hessian, minimize


def make_quadratics(curvatures):
    """Return an evaluation function of sum(curvature * (x - row number)^2) / 2 per row, and its record of calls."""
    curvatures, calls = torch.tensor(curvatures), []

    def evaluate(points, rows):
        calls.append(rows.tolist())
        difference = points - rows[:, None]
        return (curvatures[rows] * difference.square()).sum(dim=1) / 2, curvatures[rows] * difference

    return evaluate, calls


def test_each_function_gets_its_own_minimum():
    evaluate, _ = make_quadratics([[1.0, 1.0, 1.0], [1e3, 1.0, 1e-1], [1e-1, 1e-1, 1e-1]])
    minima = minimize(evaluate, torch.full((3, 3), 5.0), 200)
    torch.testing.assert_close(minima, torch.arange(3.0)[:, None].expand(3, 3), atol=1e-4, rtol=0)


def test_a_function_does_not_depend_on_the_others():
    curvatures = [[1.0, 10.0, 100.0], [3.0, 1e3, 1.0]]
    both = minimize(make_quadratics(curvatures)[0], torch.full((2, 3), 5.0), 200)
    alone = minimize(make_quadratics(curvatures[:1])[0], torch.full((1, 3), 5.0), 200)
    torch.testing.assert_close(both[:1], alone, atol=1e-6, rtol=0)


def test_a_converged_function_is_not_evaluated_again():
    evaluate, calls = make_quadratics([[1.0] * 30, np.geomspace(1, 1e2, 30).tolist()])
    minimize(evaluate, torch.full((2, 30), 5.0), 200)
    assert calls[: lbfgs.CHECK_INTERVAL + 1] == [[0, 1]] * (lbfgs.CHECK_INTERVAL + 1)
    assert calls[-1] == [1] and len(calls) < 200


def test_the_minimum_of_a_non_quadratic_function_agrees_with_scipy():
    """Rosenbrock's function: steps are rejected, and curvature is negative on the way."""

    def evaluate(points, rows):
        points = points.detach().requires_grad_()
        x, y = points.T
        values = (1 - x) ** 2 + 20 * (y - x**2) ** 2
        values.sum().backward()
        return values.detach(), points.grad

    def evaluate_one(point):
        value, gradient = evaluate(torch.tensor(point)[None], None)
        return value.item(), gradient[0].numpy()

    starts = torch.tensor([[-1.2, 1.0], [2.0, -1.0], [0.0, 0.0]], dtype=torch.float64)
    expected = np.stack([minimize_one(evaluate_one, start.numpy(), jac=True, tol=1e-12).x for start in starts])
    np.testing.assert_allclose(minimize(evaluate, starts, 500), expected, atol=1e-5)


def test_the_compact_inverse_hessian_is_that_of_bfgs_updates():
    generator = torch.Generator().manual_seed(0)
    hessian = torch.diag(torch.linspace(1, 5, 6, dtype=torch.float64))
    steps = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    changes, scale = steps @ hessian, torch.tensor([0.4], dtype=torch.float64)
    inverse = torch.eye(6, dtype=torch.float64) * scale
    for step, change in zip(steps, changes, strict=True):  # Nocedal and Wright 2006, equation 6.17
        rho = 1 / (step @ change)
        left = torch.eye(6, dtype=torch.float64) - rho * torch.outer(step, change)
        inverse = left @ inverse @ left.T + rho * torch.outer(step, step)
    gradient = torch.randn(1, 6, generator=generator, dtype=torch.float64)
    unused = torch.zeros(1, 1, 6, dtype=torch.float64)  # a pair that was left out
    histories = [torch.cat([pairs[None, :1], unused, pairs[None, 1:]], dim=1) for pairs in (steps, changes)]
    found = apply_inverse_hessian(gradient, *histories, scale)
    torch.testing.assert_close(found, gradient @ inverse)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_function_that_is_not_finite_ends_the_search(value):
    calls = []

    def evaluate(points, rows):
        calls.append(rows)
        return torch.full((len(points),), value), torch.full_like(points, value)

    minimize(evaluate, torch.zeros(2, 3), 200)
    assert len(calls) == lbfgs.CHECK_INTERVAL + 1


def test_rounding_errors_end_the_search():
    """The gradient of this function has an error that is never below the limit."""
    calls, generator = [], torch.Generator().manual_seed(0)

    def evaluate(points, rows):
        calls.append(rows)
        noise = 1e-3 * torch.randn(points.shape, generator=generator)
        return (1 + points.square().sum(dim=1)).float(), 2 * points + noise

    assert minimize(evaluate, torch.full((1, 4), 3.0), 1000).abs().max() < 0.01
    assert len(calls) < 200


@pytest.mark.gpu
def test_a_minimization_waits_for_the_gpu_only_at_checks():
    curvatures = torch.linspace(1, 1e3, 50, device="cuda").expand(3, 50)
    previous, waits = torch.cuda.get_sync_debug_mode(), []

    def evaluate(points, rows):
        torch.cuda.set_sync_debug_mode("error" if len(waits) % lbfgs.CHECK_INTERVAL else previous)
        waits.append(rows)
        return (curvatures[rows] * points.square()).sum(dim=1) / 2, curvatures[rows] * points

    try:
        minimize(evaluate, torch.ones(3, 50, device="cuda"), lbfgs.CHECK_INTERVAL)  # ends before the first check
    finally:
        torch.cuda.set_sync_debug_mode(previous)
    assert len(waits) == lbfgs.CHECK_INTERVAL
