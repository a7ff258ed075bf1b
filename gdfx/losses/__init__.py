"""Losses keep a value for each element or row (write `.mean()`); those called `mean_*` are scalars.

Nothing broadcasts: shapes that differ raise. From half precision they compute and return float32.
"""

from gdfx.losses.classification import (
    sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy,
    softmax_cross_entropy as softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from gdfx.losses.contrastive import (
    ntxent as ntxent,
    triplet_margin_loss as triplet_margin_loss,
)
from gdfx.losses.cosine import (
    cosine_distance as cosine_distance,
    cosine_similarity as cosine_similarity,
)
from gdfx.losses.ctc import (
    ctc_loss as ctc_loss,
    ctc_loss_with_forward_probs as ctc_loss_with_forward_probs,
)
from gdfx.losses.divergence import (
    generalized_kl_divergence as generalized_kl_divergence,
    kl_divergence as kl_divergence,
    kl_divergence_with_log_targets as kl_divergence_with_log_targets,
)
from gdfx.losses.fenchel_young import make_fenchel_young_loss as make_fenchel_young_loss
from gdfx.losses.focal import (
    poly_loss_cross_entropy as poly_loss_cross_entropy,
    sigmoid_focal_loss as sigmoid_focal_loss,
)
from gdfx.losses.margin import (
    hinge_loss as hinge_loss,
    multiclass_hinge_loss as multiclass_hinge_loss,
    multiclass_perceptron_loss as multiclass_perceptron_loss,
    multiclass_sparsemax_loss as multiclass_sparsemax_loss,
    perceptron_loss as perceptron_loss,
    sparsemax_loss as sparsemax_loss,
)
from gdfx.losses.ranking import ranking_softmax_loss as ranking_softmax_loss
from gdfx.losses.regression import (
    absolute_error as absolute_error,
    huber_loss as huber_loss,
    l2_loss as l2_loss,
    log_cosh as log_cosh,
    mean_absolute_error as mean_absolute_error,
    mean_squared_error as mean_squared_error,
    squared_error as squared_error,
)
from gdfx.losses.segmentation import (
    binary_dice_loss as binary_dice_loss,
    dice_loss as dice_loss,
    multiclass_generalized_dice_loss as multiclass_generalized_dice_loss,
)
from gdfx.losses.smoothing import smooth_labels as smooth_labels
