"""Optimizers, one algorithm a file: its state, its `scale_by_...` link, and the complete optimizer."""
