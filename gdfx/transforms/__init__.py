"""Links of optimizers: clipping, decay, momentum, scaling."""
