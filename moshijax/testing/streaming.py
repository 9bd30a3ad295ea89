"""`check_streaming`: checks that a layer keeps the streaming contract of `moshijax.nn.streaming`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array


#: Blocks in one step: single ones, a few, and as many as a prompt is prefilled with.
SIZES = (1, 2, 3, 8, 64)


def jittered(variables: Any, key: Array, scale: float = 0.1) -> Any:
    """Return the tree with noise added to vectors and scalars: biases, norms and layer scales are not at 0 or 1."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    out = [
        leaf + scale * jax.random.normal(k, leaf.shape, leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.floating) and np.sum(np.array(leaf.shape) > 1) <= 1
        else leaf
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, out)


def check_streaming(
    layer: Any,
    variables: Any,
    features: tuple[int, ...] | int = (),
    *,
    batch_size: int = 3,
    blocks: int | None = None,
    sizes: tuple[int, ...] = SIZES,
    splits: int = 20,
    gradients: bool = True,
    atol: float = 1e-5,
    rtol: float = 1e-5,
    seed: int = 0,
) -> None:
    """Assert that `layer` keeps the streaming contract.

    Whole sequence = stepwise, outputs and gradients (of parameters and input), for steps of each of `sizes` blocks and
    for `splits` random sequences of them; no effect of the future; arbitrary finite values after a row's length leave
    its earlier outputs and their gradients unchanged; nothing older than the receptive field matters; the state keeps
    its structure and has leading axis B; frozen and reset rows are right.

    Args:
      layer: a streaming layer, unbound.
      variables: its variables (`{"params": ...}`), or a PRNG key to initialise it with (then vectors are jittered).
      features: dimensions of the input after `[B, T]`.
      batch_size: B, at least 2.
      blocks: length of the sequence, in blocks; None: twice the largest step and three more.
      sizes: blocks in one step, 1 among them. Each is compiled once.
      splits: number of random splits.
      gradients: also compare gradients.
      atol: absolute tolerance; gradients are compared relative to their largest entry as well.
      rtol: relative tolerance.
      seed: of inputs and splits.

    Raises:
      AssertionError: a property fails; the message names it and the largest error.
    """
    features = (features,) if isinstance(features, int) else tuple(features)
    rng = np.random.RandomState(seed)
    block, ratio = layer.block_size, layer.output_ratio
    sizes = tuple(sorted(sizes))
    blocks = blocks or 2 * sizes[-1] + 3
    length, out_block = blocks * block, block * ratio
    assert out_block.denominator == 1, f"output_ratio {ratio} times block_size {block} is not a whole number"
    out_block = int(out_block)

    def noise(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    x = noise(batch_size, length, *features)
    if not isinstance(variables, dict) and hasattr(variables, "dtype"):
        init_key, jitter_key = jax.random.split(variables)
        variables = jittered(nn.meta.unbox(jax.jit(layer.init)(init_key, x)), jitter_key)

    whole = jax.jit(lambda variables, x: layer.apply(variables, x))
    step = jax.jit(lambda variables, state, x: layer.apply(variables, state, x, method="step"))
    step_some = jax.jit(lambda variables, state, x, active: layer.apply(variables, state, x, active, method="step"))
    y = whole(variables, x)
    assert y.shape[:2] == (batch_size, blocks * out_block), f"whole output {y.shape}, expected T = {blocks * out_block}"

    def close(a, b, what):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, f"{what}: shape {a.shape} is not {b.shape}"
        assert np.isfinite(a).all(), f"{what}: not finite"
        error = np.abs(a - b)
        assert (error <= atol + rtol * np.abs(b)).all(), f"{what}: largest error {error.max():.3g}"

    # State structure.
    start = layer.init_state(batch_size)
    for path, leaf in jax.tree_util.tree_leaves_with_path(start):
        assert leaf.shape[:1] == (batch_size,), f"state{jax.tree_util.keystr(path)} {leaf.shape} lacks leading axis B"

    def spec(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)

    # Whole = stepwise, for uniform and random splits.
    def run(split):
        state, outs, states, at = start, [], [], 0
        for n in split:
            states.append(state)
            state, out = step(variables, state, x[:, at * block : (at + n) * block])
            assert spec(state) == spec(start), (
                f"step of {n} blocks changed the state from {spec(start)} to {spec(state)}"
            )
            assert out.shape[:2] == (batch_size, n * out_block), f"step of {n} blocks gave {out.shape}"
            outs.append(out)
            at += n
        return np.concatenate(outs, 1), states

    def filled(split):
        """The split, with steps of the largest sizes that fit up to the end."""
        while (rest := blocks - sum(split)) > 0:
            split = [*split, max(size for size in sizes if size <= rest)]
        return split

    uniform = [filled([size] * (blocks // size)) for size in sizes]
    randoms = []
    for _ in range(splits):
        split = []
        while (fitting := [size for size in sizes if size <= blocks - sum(split)]) and sum(split) < blocks // 2:
            split.append(int(rng.choice(fitting)))
        randoms.append(filled(split))
    for split in uniform + randoms:
        close(run(split)[0], y, f"outputs of steps {split} against the whole sequence")

    # Gradients of a random linear functional.
    if gradients:
        weight = noise(*y.shape)
        whole_grads = jax.jit(jax.grad(lambda variables, x, w: jnp.sum(layer.apply(variables, x) * w), (0, 1)))
        expected = whole_grads(variables, x, weight)
        pull = _step_pullback(layer)
        for split in uniform + randoms[:3]:
            states = run(split)[1]
            sizes = np.cumsum([0, *split])
            ct_state = None
            grads, x_grads = None, []
            for i in reversed(range(len(split))):
                a, b = sizes[i], sizes[i + 1]
                ct_y = weight[:, a * out_block : b * out_block]
                g, ct_state, gx = pull(variables, states[i], x[:, a * block : b * block], ct_state, ct_y)
                grads = g if grads is None else jax.tree.map(jnp.add, grads, g)
                x_grads.append(gx)
            got = (grads, np.concatenate(x_grads[::-1], 1))
            _close_trees(got, expected, 10 * atol, f"gradients of steps {split} against the whole sequence")

    # The future, and whatever lies behind a row's end.
    ends = rng.randint(1, blocks, size=batch_size)
    garbage = x.copy()
    mask = np.zeros_like(np.asarray(y))
    for b, end in enumerate(ends):
        garbage[b, end * block :] = 1e3 * noise(length - end * block, *features)
        mask[b, : end * out_block] = 1
    close(whole(variables, garbage) * mask, y * mask, "outputs before a row's end, with other values after it")
    if gradients:
        got, expected = whole_grads(variables, garbage, mask), whole_grads(variables, x, mask)
        for b, end in enumerate(ends):
            assert not np.asarray(got[1][b, end * block :]).any(), (
                "gradient of outputs with respect to the future is not 0"
            )
        _close_trees(got, expected, 10 * atol, "gradients of outputs before a row's end, with other values after it")

    # The receptive field.
    field = layer.receptive_field
    if field is not None and field < length:
        first = -(-(field - block) // block) + 1  # first block whose outputs cannot see input step 0 .. block - 1
        if first < blocks:
            changed = x.copy()
            changed[:, :block] += 1 + noise(batch_size, block, *features)
            close(
                whole(variables, changed)[:, first * out_block :], y[:, first * out_block :], f"receptive field {field}"
            )

    # Rows that freeze and restart, each at its own pace, among neighbours that do other things.
    state, at = start, np.zeros(batch_size, int)
    n = 2 if 2 in sizes else 1
    reset = jax.jit(layer.reset)
    for _ in range(2 * blocks // n):
        active = rng.rand(batch_size) < 0.7
        rows = rng.rand(batch_size) < 0.1
        state = reset(state, jnp.asarray(rows))
        at[rows] = 0
        active &= at + n <= blocks
        piece = np.stack(
            [
                x[b, at[b] * block : (at[b] + n) * block] if active[b] else 1e3 * noise(n * block, *features)
                for b in range(batch_size)
            ]
        )
        state, out = step_some(variables, state, piece, jnp.asarray(active))
        assert spec(state) == spec(start), "a step with frozen rows changed the structure of the state"
        for b in np.flatnonzero(active):
            want = np.asarray(y)[b, at[b] * out_block : (at[b] + n) * out_block]
            close(out[b], want, f"row {b} at block {at[b]} after frozen steps and resets")
        at[active] += n


def _step_pullback(layer: Any):
    """Return `f(variables, state, x, ct_state, ct_y)`: cotangents of variables, of the float leaves of state, of x."""

    def is_float(leaf):
        return jnp.issubdtype(leaf.dtype, jnp.floating)

    def floats(tree):
        return [leaf for leaf in jax.tree.leaves(tree) if is_float(leaf)]

    @jax.jit
    def pull(variables, state, x, ct_state, ct_y):
        leaves, tree = jax.tree.flatten(state)

        def forward(variables, float_leaves, x):
            rest = iter(float_leaves)
            merged = jax.tree.unflatten(tree, [next(rest) if is_float(leaf) else leaf for leaf in leaves])
            new, y = layer.apply(variables, merged, x, method="step")
            return floats(new), y

        (new, _), vjp = jax.vjp(forward, variables, floats(state), x)
        return vjp(([jnp.zeros_like(leaf) for leaf in new] if ct_state is None else ct_state, ct_y))

    return pull


def _close_trees(got: Any, want: Any, tolerance: float, what: str) -> None:
    paths = jax.tree_util.tree_leaves_with_path(want)
    for (path, b), a in zip(paths, jax.tree.leaves(got), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if not np.issubdtype(b.dtype, np.floating):
            continue
        error = np.abs(a - b).max(initial=0)
        limit = tolerance * max(1.0, np.abs(b).max(initial=0))
        assert error <= limit, f"{what}: {jax.tree_util.keystr(path)} differs by {error:.3g}, more than {limit:.3g}"
