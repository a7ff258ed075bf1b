"""Connectionist temporal classification: labels whose positions in time are unknown."""

import functools
import operator

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gdfx.checks import check_float, check_indices, check_same_shape, check_scalar, compute_dtype, nan_unless

# The log of 0 in sums: finite, so that differences and their derivatives are; far below any sum of log-probabilities.
_LOG_ZERO = -1e30


def ctc_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
) -> jax.Array:
    """Minus the log of the probability that the frames `logits`, read off one by one, spell `labels`.

    An alignment gives each frame a class; it spells the labels that are left when repetitions are merged and then
    blanks dropped. The probability of all alignments that spell `labels` is summed.

    `logits` (batch, time, classes) need not be normalized, class `blank_id` is the blank. `labels` (batch, length) are
    integers. `logit_paddings` (batch, time) and `label_paddings` (batch, length) are True or nonzero at frames and
    labels to skip, whose values do not matter; padded frames may be anywhere, padded labels follow the others. The
    result is (batch,), float64 if `logits` are, else float32.

    A row that cannot be spelled (fewer frames than labels plus repetitions, or logits of -inf) costs -`log_epsilon`,
    which is not positive and may be -inf, with gradient 0. A row with a label outside [0, classes), a label that is
    the blank, or a label after a padded one (is the mask inverted?) is NaN, with gradient 0. A row without labels
    costs the log-probability of blanks only.

    Raises `ValueError` for shapes that do not fit and `TypeError` for labels that are no integers.

    Source: Graves et al., 2006, https://doi.org/10.1145/1143844.1143891.
    """
    arguments = (logits, logit_paddings, labels, label_paddings)
    return ctc_loss_with_forward_probs(*arguments, blank_id=blank_id, log_epsilon=log_epsilon)[0]


def ctc_loss_with_forward_probs(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`ctc_loss`, and the logs of the forward probabilities it is computed from.

    The second result, (time, batch, length + 1), holds at [t, b, n] the log of the probability that frames 0 to t
    spell the first n labels and end in a blank; its last row t, that they spell them at all. The third,
    (time, batch, length), holds that they spell the first n + 1 labels and end in the last of these. A probability of
    0 is `log_epsilon`; at padded frames the values before them are repeated.
    """
    logits = check_float("logits", logits)
    if logits.ndim != 3:
        hint = "; add the batch axis, logits[None]" if logits.ndim == 2 else ""
        raise ValueError(f"logits must be (batch, time, classes), got {logits.shape}{hint}")
    labels = check_indices("labels", labels, "cast with labels.astype(int)")
    batch, time, classes = logits.shape
    if labels.ndim != 2 or labels.shape[0] != batch:
        raise ValueError(
            f"labels must be (batch, length) with the batch size {batch} of logits {logits.shape}, got {labels.shape}"
        )
    length = labels.shape[1]
    skip = _check_paddings("logit_paddings", logit_paddings, "logits without classes", (batch, time))
    absent = _check_paddings("label_paddings", label_paddings, "labels", (batch, length))
    if isinstance(blank_id, bool) or not hasattr(blank_id, "__index__"):
        raise TypeError(f"blank_id must be an int, got {blank_id!r}")
    blank_id = operator.index(blank_id)
    if not 0 <= blank_id < classes:
        raise ValueError(f"blank_id must be a class of logits {logits.shape}, in [0, {classes}), got {blank_id}")
    dtype = compute_dtype(logits)
    log_epsilon = check_scalar("log_epsilon", log_epsilon, dtype, lambda value: bool(value <= 0), "at most 0")
    return _forward(logits.astype(dtype), skip, labels, absent, log_epsilon, blank_id)


@functools.partial(jax.jit, static_argnums=5)  # outside of any jit, the loop would be compiled at each call
def _forward(
    logits: jax.Array, skip: jax.Array, labels: jax.Array, absent: jax.Array, log_epsilon: jax.Array, blank_id: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    (batch, time, classes), length = logits.shape, labels.shape[1]
    known = (labels >= 0) & (labels < classes) & (labels != blank_id) & ~absent
    in_order = jnp.cumsum(absent, axis=1) == 0
    valid = ((known & in_order) | absent).all(1)
    repeated = jnp.concatenate([jnp.zeros((batch, min(length, 1)), bool), labels[:, 1:] == labels[:, :-1]], axis=1)

    log_p = jax.nn.log_softmax(jnp.where(skip[..., None], 0, logits))
    log_p = jnp.where(log_p < _LOG_ZERO, _LOG_ZERO, log_p)  # NaN stays NaN
    log_label = jnp.take_along_axis(log_p, jnp.where(known, labels, 0)[:, None, :], axis=2)
    log_label = jnp.where(known[:, None, :], log_label, _LOG_ZERO)

    def step(before: tuple[jax.Array, jax.Array], frame: tuple[jax.Array, jax.Array, jax.Array]):
        blank, label = before
        log_blank, log_label, skip = frame
        spelled = _either(blank, label)
        # Without a blank in between, a repeated label would be merged with the one before.
        ready = jnp.where(repeated, blank[:, :-1], spelled[:, :-1])
        new = (spelled + log_blank, jnp.logaddexp(ready, label) + log_label)
        after = (jnp.where(skip, blank, new[0]), jnp.where(skip, label, new[1]))
        return after, after

    blank = jnp.full((batch, length + 1), _LOG_ZERO, logits.dtype).at[:, 0].set(0)
    label = jnp.full((batch, length), _LOG_ZERO, logits.dtype)
    frames = (log_p[..., blank_id, None], log_label, skip[..., None])
    frames = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), frames)
    (blank, label), (blanks, nonblanks) = jax.lax.scan(step, (blank, label), frames)
    spelled = _either(blank, label)
    if time:
        blanks = blanks.at[-1].set(spelled)

    blanks, nonblanks, spelled = (jnp.where(x < _LOG_ZERO / 2, log_epsilon, x) for x in (blanks, nonblanks, spelled))
    n_labels = (~absent).sum(1, keepdims=True)
    loss = -jnp.take_along_axis(spelled, n_labels, axis=1).squeeze(1)
    return nan_unless(valid, loss), blanks, nonblanks


def _either(blank: jax.Array, label: jax.Array) -> jax.Array:
    """The log of the probability that the first n labels are spelled, ending in a blank or in the last of them."""
    return jnp.concatenate([blank[:, :1], jnp.logaddexp(blank[:, 1:], label)], axis=1)


def _check_paddings(name: str, value: ArrayLike, of: str, shape: tuple[int, int]) -> jax.Array:
    """Returns paddings as booleans."""
    paddings = jnp.asarray(value)
    if jnp.issubdtype(paddings.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be booleans or the numbers 0 and 1, got {paddings.dtype}")
    check_same_shape(of, shape, name, paddings.shape)
    return paddings.astype(bool)
