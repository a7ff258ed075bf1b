"""Small models as pairs of pure functions: `init(key) -> params` and `apply(params, x)`.

In `mlp` and `cnn` hidden layers start with He-normal kernels (https://arxiv.org/abs/1502.01852), which suit rectifiers
such as relu and gelu; the linear output layer, and hidden layers with a saturating or no activation, start
Glorot-normal (https://proceedings.mlr.press/v9/glorot10a.html). Biases start at zero unless `bias_scale`, the standard
deviation of their normal distribution, is positive.
"""

from .convolutional import cnn as cnn
from .dense import mlp as mlp
from .layers import Activation as Activation, Model as Model, Params as Params
from .transformer import transformer as transformer
