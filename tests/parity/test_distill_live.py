"""Divergences and their gradients against torch: `kl_div` on log-targets, as the torch frameworks have it, differentiated by
autograd. `make parity`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rlhf_jax.objectives import distillation  # noqa: E402

pytestmark = pytest.mark.parity


def divergence(student, teacher, beta):
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m) of logits [N, V]; torch's kl_div(a, b) is KL(b ‖ a)."""
    q, p = torch.log_softmax(student, -1), torch.log_softmax(teacher, -1)
    kl = lambda a, b: torch.nn.functional.kl_div(a, b, reduction="none", log_target=True).sum(-1)  # noqa: E731
    if beta == 0:
        return kl(q, p)
    if beta == 1:
        return kl(p, q)
    m = torch.log(beta * p.exp() + (1 - beta) * q.exp())
    return beta * kl(m, p) + (1 - beta) * kl(m, q)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_values_and_gradients_are_those_of_torch(beta, scale):
    rng = np.random.default_rng(0)
    student, teacher = scale * rng.normal(size=(2, 64, 50))
    given = torch.tensor(student, requires_grad=True)
    wanted = divergence(given, torch.tensor(teacher), beta)
    wanted.sum().backward()

    def found(logits):
        return distillation.jsd(jax.nn.log_softmax(logits), jax.nn.log_softmax(jnp.asarray(teacher)), beta=beta)

    with jax.enable_x64(True):
        values, slopes = jax.jit(found)(student), jax.jit(jax.grad(lambda x: found(x).sum()))(student)
    np.testing.assert_allclose(values, wanted.detach().numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(slopes, given.grad.numpy(), rtol=1e-9, atol=1e-12)
