"""Sweeps: many training runs as one program, and what came of them."""
