"""optax.losses."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gdfx import losses as _losses
from gdfx.losses import (
    binary_dice_loss as binary_dice_loss,
    ctc_loss as ctc_loss,
    ctc_loss_with_forward_probs as ctc_loss_with_forward_probs,
    dice_loss as dice_loss,
    generalized_kl_divergence as generalized_kl_divergence,
    hinge_loss as hinge_loss,
    huber_loss as huber_loss,
    kl_divergence as kl_divergence,
    kl_divergence_with_log_targets as kl_divergence_with_log_targets,
    l2_loss as l2_loss,
    log_cosh as log_cosh,
    make_fenchel_young_loss as make_fenchel_young_loss,
    multiclass_generalized_dice_loss as multiclass_generalized_dice_loss,
    multiclass_hinge_loss as multiclass_hinge_loss,
    multiclass_perceptron_loss as multiclass_perceptron_loss,
    multiclass_sparsemax_loss as multiclass_sparsemax_loss,
    ntxent as ntxent,
    perceptron_loss as perceptron_loss,
    poly_loss_cross_entropy as poly_loss_cross_entropy,
    ranking_softmax_loss as ranking_softmax_loss,
    sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy,
    sigmoid_focal_loss as sigmoid_focal_loss,
    smooth_labels as smooth_labels,
    softmax_cross_entropy as softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
    sparsemax_loss as sparsemax_loss,
    squared_error as squared_error,
    triplet_margin_loss as triplet_margin_loss,
)

safe_softmax_cross_entropy = softmax_cross_entropy


def cosine_similarity(
    predictions: ArrayLike, targets: ArrayLike, *, epsilon: ArrayLike = 0.0, axis: Any = -1, where: Any = None
) -> jax.Array:
    # Optax's epsilon is the least square of a norm, not the least norm.
    root = jnp.sqrt(epsilon)
    return _losses.cosine_similarity(predictions, targets, epsilon=root, axis=axis, where=where)


def cosine_distance(
    predictions: ArrayLike, targets: ArrayLike, *, epsilon: ArrayLike = 0.0, axis: Any = -1, where: Any = None
) -> jax.Array:
    return 1 - cosine_similarity(predictions, targets, epsilon=epsilon, axis=axis, where=where)
