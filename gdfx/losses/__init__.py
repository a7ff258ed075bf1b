"""Losses keep a value for each element or row (write `.mean()`); those called `mean_*` are scalars.

Nothing broadcasts: shapes that differ raise. From half precision they compute and return float32.
"""

from gdfx.losses.classification import (
    sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy,
    softmax_cross_entropy as softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from gdfx.losses.regression import (
    absolute_error as absolute_error,
    huber_loss as huber_loss,
    mean_absolute_error as mean_absolute_error,
    mean_squared_error as mean_squared_error,
    squared_error as squared_error,
)
