"""Minimize several functions at once with L-BFGS (Liu and Nocedal 1989, doi:10.1007/BF01589116).

One evaluation returns the values and gradients of all functions, so that one pass over the data serves all of them.
Each function has its own step length and history, and its steps do not depend on the other functions. The loop waits
for the device only every CHECK_INTERVAL evaluations.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Evaluate = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
MAX_EVALUATIONS = 250
MAX_GRADIENT = 3e-6  # largest absolute entry at a minimum; float32 gradients of a mean loss have errors near 1e-7
CHECK_INTERVAL = 5  # evaluations between two checks for convergence
N_PAIRS = 10  # steps in the history
SUFFICIENT_DECREASE = 1e-4  # of the value, relative to that of a linear function (Armijo condition)
MAX_SLOPE = 0.8  # after a step, relative to that before it
ROUNDING_ERROR = 1e-6  # of a float32 value, relative
MIN_SHRINK = 0.1  # of a step that is rejected


@dataclass(frozen=True)
class State:
    """State of the minimization of s functions of p variables.

    Attributes:
        point: the best points, shape (s, p).
        value: values there, shape (s,).
        gradient: gradients there, shape (s, p).
        step: the steps to the next points, shape (s, p).
        steps: last accepted steps, oldest first, shape (s, m, p); zeros for a pair that is left out.
        changes: changes of the gradients in these steps, shape (s, m, p).
        scale: factors of the initial inverse Hessians, multiples of the identity; shape (s,).
    """

    point: torch.Tensor
    value: torch.Tensor
    gradient: torch.Tensor
    step: torch.Tensor
    steps: torch.Tensor
    changes: torch.Tensor
    scale: torch.Tensor

    @property
    def largest_gradient(self) -> torch.Tensor:
        """Largest absolute entry of each gradient, shape (s,)."""
        return self.gradient.abs().amax(dim=1)

    def select(self, rows: torch.Tensor) -> "State":
        """Return the state of some of the functions."""
        return State(*(tensor[rows] for tensor in vars(self).values()))


def minimize(
    evaluate: Evaluate,
    start: torch.Tensor,
    max_evaluations: int,
    max_gradient: float = MAX_GRADIENT,
    first_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the minima of several functions, shape (s, p); of non-convex functions, local minima.

    A function is left out once its gradient is nearly zero, or once rounding errors hide its decrease.

    Args:
        evaluate: returns the values, shape (n,), and gradients, shape (n, p), of some functions at points of shape
            (n, p). The second argument holds the numbers of these functions, shape (n,).
        start: first points, shape (s, p).
        max_evaluations: largest number of calls of `evaluate`.
        max_gradient: largest absolute entry of the gradient at a minimum.
        first_scale: factor of each first step, which is against the gradient: 1 / curvature, shape (s,); default: at
            most length 1.
    """
    minima, rows = start.clone(), torch.arange(len(start), device=start.device)
    state = checked = make_state(start, *evaluate(start, rows), first_scale)
    for number in range(1, max_evaluations):
        state = take_step(state, *evaluate(state.point + state.step, rows))
        minima[rows] = state.point
        if number % CHECK_INTERVAL == 0:
            is_lower = (state.value < checked.value) | (state.largest_gradient < checked.largest_gradient)
            is_active = (state.largest_gradient > max_gradient) & is_lower  # False for NaN
            active = is_active.nonzero()[:, 0]  # waits for the device
            if not len(active):
                break
            rows, state = rows[active], state.select(active)
            checked = state
    return minima


def make_state(
    point: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor, scale: torch.Tensor | None = None
) -> State:
    """Return the state before the first step, which has at most length 1 unless its scale is given."""
    scale = (1 / gradient.abs().sum(dim=1)).clamp(max=1) if scale is None else scale
    history = point.new_zeros(len(point), N_PAIRS, point.shape[1])
    return State(point, value, gradient, -scale[:, None] * gradient, history, history, scale)


def take_step(state: State, trial_value: torch.Tensor, trial_gradient: torch.Tensor) -> State:
    """Return the state after an evaluation at `state.point + state.step`; a rejected step is shortened."""
    slope, trial_slope = dot(state.gradient, state.step), dot(trial_gradient, state.step)
    accepted = is_low_enough(state.value, trial_value, slope, trial_slope)
    change = trial_gradient - state.gradient
    curvature = dot(state.step, change)
    is_convex = accepted & (curvature > 0)  # only such pairs keep the Hessian positive definite
    steps, changes = append(state.steps, state.step, is_convex), append(state.changes, change, is_convex)
    scale = torch.where(is_convex, curvature / dot(change, change), state.scale)
    gradient = torch.where(accepted[:, None], trial_gradient, state.gradient)
    # shortened to the minimum of the parabola with both slopes
    factor = (slope / (slope - trial_slope)).nan_to_num(MIN_SHRINK).clamp(MIN_SHRINK, 0.5)
    new_step = -apply_inverse_hessian(gradient, steps, changes, scale)
    return State(
        point=torch.where(accepted[:, None], state.point + state.step, state.point),
        value=torch.where(accepted, trial_value, state.value),
        gradient=gradient,
        step=torch.where(accepted[:, None], new_step, factor[:, None] * state.step),
        steps=steps,
        changes=changes,
        scale=scale,
    )


def is_low_enough(
    value: torch.Tensor, trial_value: torch.Tensor, slope: torch.Tensor, trial_slope: torch.Tensor
) -> torch.Tensor:
    """Return whether a step decreases each function enough, all of shape (s,).

    Near a minimum the difference of two values is below their rounding error. The slopes along the step decide there
    (approximate Wolfe condition, Hager and Zhang 2005, doi:10.1137/030601880).
    """
    has_lower_value = trial_value <= value + SUFFICIENT_DECREASE * slope
    has_lower_slope = (trial_slope <= -MAX_SLOPE * slope) & (trial_value <= value + ROUNDING_ERROR * value.abs())
    return has_lower_value | has_lower_slope


def append(history: torch.Tensor, row: torch.Tensor, is_kept: torch.Tensor) -> torch.Tensor:
    """Return the history, shape (s, m, p), without its oldest row and with this one, or zeros where it is not kept."""
    return torch.cat([history[:, 1:], torch.where(is_kept[:, None], row, 0)[:, None]], dim=1)


def apply_inverse_hessian(
    gradient: torch.Tensor, steps: torch.Tensor, changes: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return the product of the L-BFGS inverse Hessian with the gradient, shape (s, p).

    Uses the compact representation (Byrd, Nocedal and Schnabel 1994, doi:10.1007/BF01582063, theorem 2.2): a few
    batched matrix products instead of a loop over the history.

    Args:
        gradient: gradient of each function, shape (s, p).
        steps: last steps, oldest first, shape (s, m, p); zeros for a pair that is left out.
        changes: change of the gradient in each step, shape (s, m, p).
        scale: factor of the initial inverse Hessian, a multiple of the identity; shape (s,).
    """
    # row vectors: torch multiplies a batch of matrices by column vectors many times slower on a CPU
    scale, row = scale[:, None, None], gradient[:, None, :]
    products = steps @ changes.mT
    curvature = products.diagonal(dim1=1, dim2=2)
    triangle = products.triu() + torch.diag_embed((curvature == 0).to(products))  # ones for pairs that are left out
    first = torch.linalg.solve_triangular(triangle, (row @ steps.mT).mT, upper=True).mT
    projected = row - first @ changes
    second = (curvature[:, None] * first - scale * (projected @ changes.mT)).mT
    second = torch.linalg.solve_triangular(triangle.mT, second, upper=False).mT
    return (scale * projected + second @ steps)[:, 0]


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the scalar product of each row, shape (s,)."""
    return (a * b).sum(dim=1)
