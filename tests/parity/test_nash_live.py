"""Nash-MD's losses and gradients against torch: TRL's formulation, with its KL term beside the score's, differentiated by
autograd; and the paper's by a surrogate of whole responses. `make parity`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rlhf_jax.objectives import nash  # noqa: E402

pytestmark = pytest.mark.parity
ROWS, WINDOW = 12, 7


def as_trl(logprobs, ref, probability, mask, beta):
    """β Σ (detached log-ratio · log π) − (P − ½) Σ log π, padding filled with zeros, one a response."""
    own, other = logprobs.masked_fill(~mask, 0.0), ref.masked_fill(~mask, 0.0)
    with torch.no_grad():
        apart = own - other
    return beta * (apart * own).sum(1) - (probability - 0.5) * own.sum(1)


def as_paper(logprobs, ref, probability, mask, beta):
    """Token by token over each row's own tokens, the KL from that token on as a sum of what is left."""
    out = []
    for row in range(ROWS):
        own, other = logprobs[row][mask[row]], ref[row][mask[row]]
        total = torch.zeros((), dtype=torch.float64)
        for n in range(len(own)):
            left = (own[n:] - other[n:]).sum().detach()
            total = total - own[n] * (probability[row] - 0.5 - beta * left)
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize(("name", "wanted"), [("nash_md_token", as_trl), ("nash_md", as_paper)])
@pytest.mark.parametrize("beta", [0.0, 0.008, 0.1])
@pytest.mark.parametrize("size", [0.0, 0.3, 5.0])
def test_values_and_gradients_are_those_of_torch(name, wanted, beta, size):
    rng = np.random.default_rng(0)
    length = np.array([WINDOW, 1, 0, 3, *rng.integers(1, WINDOW + 1, ROWS - 4)])
    mask = np.arange(WINDOW) < length[:, None]
    logprobs = -rng.exponential(2.0, mask.shape)
    ref = logprobs + size * rng.normal(size=mask.shape)
    probability = rng.random(ROWS)
    given = torch.tensor(logprobs, requires_grad=True)
    losses = wanted(given, torch.tensor(ref), torch.tensor(probability), torch.tensor(mask), beta)
    losses.sum().backward()
    with jax.enable_x64(True):
        function = functools.partial(getattr(nash, name), beta=beta)
        rest = jnp.asarray(ref), jnp.asarray(probability), jnp.asarray(mask)
        values = jax.jit(function)(jnp.asarray(logprobs), *rest)
        slopes = jax.jit(jax.grad(lambda x: function(x, *rest).sum()))(jnp.asarray(logprobs))
    np.testing.assert_allclose(values, losses.detach().numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(slopes, given.grad.numpy(), rtol=1e-10, atol=1e-12)
