"""optax.microbatching."""

from gdfx.microbatching import (
    AccumulationType as AccumulationType,
    Accumulator as Accumulator,
    micro_grad as micro_grad,
    micro_vmap as micro_vmap,
    microbatch as microbatch,
    reshape_batch_axis as reshape_batch_axis,
)
