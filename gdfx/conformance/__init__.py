"""The invariants that `gdfx.testing` checks."""
