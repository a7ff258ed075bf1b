"""optax.projections."""

from gdfx import projections as _projections

projection_box = _projections.box
projection_halfspace = _projections.halfspace
projection_hypercube = _projections.hypercube
projection_hyperplane = _projections.hyperplane
projection_l1_ball = _projections.l1_ball
projection_l1_sphere = _projections.l1_sphere
projection_l2_ball = _projections.l2_ball
projection_l2_sphere = _projections.l2_sphere
projection_linf_ball = _projections.linf_ball
projection_non_negative = _projections.non_negative
projection_simplex = _projections.simplex
projection_vector = _projections.vector
