"""optax.experimental."""

from gdfx import aggregating as aggregating
