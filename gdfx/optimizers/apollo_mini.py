"""APOLLO-Mini: https://arxiv.org/abs/2412.05270."""

from ..composition import Optimizer
from ..pytrees import Decay, Interval, Key, NonNegative, pytree, static
from ..transforms.decay import Mask
from .apollo import apollo
from .matrix_layout import DimensionNumbers


@pytree
class apollo_mini(Optimizer):
    """APOLLO with the rank 1 and one factor for a matrix, in the memory of SGD; see `scale_by_apollo`.

    Weight decay is decoupled; `mask` says which leaves decay, by default all. Typical learning rates are those of
    `apollo`.
    """

    learning_rate: NonNegative
    update_proj_gap: Interval = 200
    scale: NonNegative = 128.0
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: NonNegative = 1e-6
    weight_decay: NonNegative = 0.0
    mask: Mask = static(default=None)
    max_growth: NonNegative | None = 1.01
    key: Key = 0
    weight_dimension_numbers: DimensionNumbers = static(default=None)

    def links(self):
        return (
            apollo(
                self.learning_rate,
                1,
                self.update_proj_gap,
                self.scale,
                "tensor",
                self.b1,
                self.b2,
                self.eps,
                self.weight_decay,
                self.mask,
                self.max_growth,
                self.key,
                weight_dimension_numbers=self.weight_dimension_numbers,
            ),
        )
