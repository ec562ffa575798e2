"""Policy losses and their gradients, and group advantages, against torch: written from the papers' formulas as the torch
frameworks have them (sequences in a row, groups as a reshape), differentiated by autograd. `make parity`."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from rlhf_jax.objectives import group_advantages, policy_zoo, weights  # noqa: E402

pytestmark = pytest.mark.parity
ROWS, WINDOW, GROUP = 12, 7, 4


def surrogate(ratio, advantages, low, high):
    return -torch.minimum(ratio * advantages, torch.clamp(ratio, 1 - low, 1 + high) * advantages)


def sequence_ratio(new, old, mask):
    return torch.exp(((new - old) * mask).sum(1) / mask.sum(1).clamp(min=1))[:, None]


def gspo_token(new, old, advantages, mask):
    own = torch.exp(new - new.detach())
    return surrogate(sequence_ratio(new, old, mask).detach() * own, advantages, 3e-4, 4e-4)


def cispo(new, old, advantages, mask):
    return -torch.clamp(torch.exp(new - old), max=5.0).detach() * advantages * new


def sapo(new, old, advantages, mask):
    tau = 1.05 - 0.05 * (advantages > 0).double()
    return -torch.sigmoid(tau * (torch.exp(new - old) - 1)) * 4 / tau * advantages


def geometric_mean(new, old, advantages, mask):
    """The product of the paper, not the sum of logarithms."""
    out = []
    for row in range(ROWS):
        kept = mask[row]
        if not kept.any():
            out.append(torch.zeros((), dtype=torch.float64))
            continue
        sign, ratio = torch.sign(advantages[row, 0]), torch.exp(new[row, kept] - old[row, kept])
        bounded = torch.clamp(ratio, float(np.exp(-0.4)), float(np.exp(0.4)))
        least = torch.minimum(ratio**sign, bounded**sign) ** sign
        out.append(-advantages[row, 0] * torch.prod(least) ** (1 / int(kept.sum())))
    return torch.stack(out)[:, None].expand(ROWS, WINDOW)


def kl_penalty(new, old, advantages, mask):
    ratio = torch.exp(new - old)
    return -ratio * advantages + (ratio - 1 - (new - old))


LOSSES = {
    "clipped": lambda new, old, advantages, mask: surrogate(torch.exp(new - old), advantages, 0.2, 0.2),
    "unclipped": lambda new, old, advantages, mask: -torch.exp(new - old) * advantages,
    "gspo": lambda new, old, advantages, mask: surrogate(sequence_ratio(new, old, mask), advantages, 3e-4, 4e-4),
    "gspo_token": gspo_token,
    "cispo": cispo,
    "sapo": sapo,
    "geometric_mean": geometric_mean,
    "kl_penalty": kl_penalty,
}


@pytest.mark.parametrize("size", [0.0, 3e-4, 0.3, 2.0])
@pytest.mark.parametrize("name", policy_zoo.LOSSES)
def test_a_loss_and_its_gradient_are_those_of_torch(name, size):
    """Under a mean over sequences, float64; log-ratios from none to far beyond every bound."""
    rng = np.random.default_rng(0)
    length = np.array([WINDOW, 1, 0, 3, *rng.integers(1, WINDOW + 1, ROWS - 4)])
    mask = np.arange(WINDOW) < length[:, None]
    old = np.where(mask, -rng.exponential(2.0, mask.shape), 0)
    new = np.where(mask, old + size * rng.normal(size=mask.shape), 0)
    advantages = np.where(mask, rng.normal(size=(ROWS, 1)), 0)

    function = getattr(policy_zoo, name)
    needs = {"mask": jnp.asarray(mask)} if "mask" in inspect.signature(function).parameters else {}
    with jax.enable_x64(True):
        weigh = np.asarray(weights.sequence_mean(jnp.asarray(mask)), np.float64)
        rest = jnp.asarray(old), jnp.asarray(advantages)
        loss = functools.partial(function, **needs)
        ours, slope = jax.value_and_grad(lambda x: jnp.sum(weigh * loss(x, *rest)))(jnp.asarray(new))

    x = torch.tensor(new, requires_grad=True)
    terms = LOSSES[name](x, torch.tensor(old), torch.tensor(advantages), torch.tensor(mask))
    counted = torch.where(torch.tensor(mask), terms, 0.0).sum(1) / torch.tensor(length).clamp(min=1)
    theirs = counted.sum() / (length > 0).sum()
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-10)
    np.testing.assert_allclose(slope, x.grad.numpy(), atol=1e-10)


def rloo(grouped):
    return (grouped - (grouped.sum(1, keepdim=True) - grouped) / (GROUP - 1)).flatten()


def grpo(grouped, std):
    return ((grouped - grouped.mean(1, keepdim=True)) / (std + 1e-4)).flatten()


def test_advantages_are_those_of_torch_on_groups_in_a_row():
    rng = np.random.default_rng(1)
    scores, length = rng.normal(size=ROWS), rng.integers(1, WINDOW + 1, ROWS)
    grouped, sizes = torch.tensor(scores).view(-1, GROUP), torch.tensor(length).view(-1, GROUP)
    best, place = grouped.topk(2, dim=1)
    lead = torch.zeros_like(grouped).scatter(1, place[:, :1], best[:, :1] - best[:, 1:]).flatten()
    wanted = {
        "grpo": grpo(grouped, grouped.std(1, keepdim=True)),
        "grpo_batch_std": grpo(grouped, torch.tensor(scores).std()),
        "dr_grpo": (grouped - grouped.mean(1, keepdim=True)).flatten(),
        "rloo": rloo(grouped),
        "opo": (grouped - ((sizes * grouped).sum(1) / sizes.sum(1))[:, None]).flatten(),
        "pass_at_k": lead,
    }
    with jax.enable_x64(True):
        groups, valid = jnp.repeat(jnp.arange(ROWS // GROUP), GROUP), jnp.ones(ROWS, bool)
        for name, theirs in wanted.items():
            rest = {"opo": {"length": jnp.asarray(length)}, "pass_at_k": {"k": GROUP}}.get(name, {})
            found = getattr(group_advantages, name)(jnp.asarray(scores), groups, valid, **rest)
            np.testing.assert_allclose(found, theirs.numpy(), atol=1e-12, err_msg=name)
        mask = torch.arange(WINDOW)[None] < torch.tensor(length)[:, None]
        whole = (grouped - grouped.mean(1, keepdim=True)).flatten()[:, None].expand(ROWS, WINDOW)
        white = torch.where(mask, (whole - whole[mask].mean()) / torch.sqrt(whole[mask].var() + 1e-8), 0.0)
        found = group_advantages.reinforce_plus_plus_baseline(
            jnp.asarray(scores), groups, valid, jnp.asarray(mask.numpy())
        )
        np.testing.assert_allclose(found, white.numpy(), atol=1e-12)
