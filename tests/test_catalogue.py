"""The catalogue as a whole: names and arguments are optax's, state is as small as promised, the page is up to date."""

import inspect
import re
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from cases import CASES, SOLVERS

import gdfx

ROOT = Path(__file__).parents[1]

OPTIMIZERS = """
    adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars lbfgs lion nadam
    nadamw noisy_sgd novograd optimistic_adam_v2 optimistic_gradient_descent polyak_sgd radam rmsprop rprop sgd
    sign_sgd signum sm3 yogi acprop ademamix adopt cocob dadapt_adamw dog dowg dpsgd galore madgrad momo momo_adam muon
    prodigy schedule_free_adamw schedule_free_sgd simplified_ademamix sophia
"""
TRANSFORMS = """
    hutchinson_estimator_diag_hessian scale_by_lbfgs scale_by_zoom_linesearch scale_by_backtracking_linesearch
    scale_by_acprop scale_by_ademamix scale_by_adopt scale_by_cocob scale_by_galore
    scale_by_madgrad scale_by_simplified_ademamix scale_by_adadelta scale_by_adam scale_by_adamax scale_by_adan
    scale_by_amsgrad scale_by_belief scale_by_distance_over_gradients scale_by_factored_rms scale_by_lion
    scale_by_novograd scale_by_optimistic_gradient scale_by_polyak scale_by_radam scale_by_rms scale_by_rprop
    scale_by_rss scale_by_sm3 scale_by_muon scale_by_stddev scale_by_yogi centralize differentially_private_aggregate
    reduce_on_plateau identity set_to_zero stateless stateless_with_tree_map keep_params_nonnegative zero_nans normalize
    normalize_by_update_norm scale scale_by_learning_rate scale_by_param_block_norm scale_by_param_block_rms
    scale_by_schedule scale_by_sign scale_by_trust_ratio adaptive_grad_clip clip clip_by_block_rms clip_by_global_norm
    apply_every ema trace measure_with_ema monitor snapshot add_decayed_weights add_noise
"""
# Arguments that are other ones than in this version of optax, and why.
NO_SEED = "optax has two names for a key, and without either takes the same numbers in every run"
DIFFERENT = {
    "lbfgs": "the default of `linesearch` is this library's",
    "monitor": "a single measurement may be given with its name",
    "adabelief": "the weight decay is that of optax's next version",
    "prodigy": "the mask is that of optax's next version",
    "adopt": "the default of `clip_value_fn` has a name here",
    "scale_by_adopt": "the default of `clip_value_fn` has a name here",
    "scale_by_factored_rms": "the default of `decay_rate_fn` is a function of this library",
    "scale_by_learning_rate": "there is no default: without a learning rate optax's does not flip the sign",
    "sophia": "the default estimator is this library's; what is printed in optax, a `monitor` can measure",
    "add_noise": NO_SEED,
    "differentially_private_aggregate": NO_SEED,
    "dpsgd": NO_SEED,
    "hutchinson_estimator_diag_hessian": NO_SEED,
    "noisy_sgd": NO_SEED,
}


def optax_of(name):
    for namespace in (optax.contrib, optax.transforms, optax):
        if hasattr(namespace, name):
            return getattr(namespace, name)
    raise AssertionError(f"optax has no {name}")


def arguments(fn):
    return {p.name: (p.default, p.kind is p.KEYWORD_ONLY) for p in inspect.signature(fn).parameters.values()}


@pytest.mark.parametrize("name", [*OPTIMIZERS.split(), *TRANSFORMS.split()])
def test_arguments_are_optaxs(name):
    ours, theirs = arguments(getattr(gdfx, name)), arguments(optax_of(name))
    if name in DIFFERENT:
        assert ours != theirs, f"{name} is listed as different, and is not"
        return
    assert {key: ours.get(key) for key in theirs} == theirs
    positional = [key for key, (_, keyword_only) in ours.items() if not keyword_only]
    assert positional == [key for key, (_, keyword_only) in theirs.items() if not keyword_only]


def test_every_optimizer_is_one():
    for name in OPTIMIZERS.split():
        assert issubclass(getattr(gdfx, name), gdfx.Optimizer), name


def test_every_optimizer_has_an_oracle():
    checked = {case.name.split("-")[0] for case in CASES if case.oracle or case.golden}
    optimizers = {c.name for c in CASES if isinstance(c.make(), gdfx.Optimizer) and not c.variant}
    assert optimizers - checked == SOLVERS | {"by_role"}  # a composition: test_routing.py


def test_docstrings_say_what_one_has_to_know():
    """The learning rate to start from, and the mode of weight decay."""
    for case in CASES:
        opt = case.make()
        if isinstance(opt, gdfx.Optimizer) and not case.variant:
            told = " ".join((type(opt).__doc__ or "").split())
            assert re.search(r"learning[ _]rate", told), case
            if any(name.startswith("weight_decay") for name in arguments(type(opt))):
                assert re.search("coupled|independent|proximal", told), case


def state_bytes(opt, shape):
    state = jax.eval_shape(opt.init, {"w": jax.ShapeDtypeStruct(shape, jnp.float32)})
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.ndim)


@pytest.mark.parametrize(
    ("opt", "expected"),
    [
        (gdfx.sgd(0.1), 0),
        (gdfx.adam(0.1), 8),
        (gdfx.adam(0.1, mu_dtype="bfloat16"), 6),
        (gdfx.lion(0.1), 4),
        (gdfx.sign_sgd(0.1), 0),
    ],
    ids=repr,
)
def test_bytes_a_parameter(opt, expected):
    assert state_bytes(opt, (64, 128)) == expected * 64 * 128


def test_sublinear_state():
    """Rows and columns, not elements."""
    assert state_bytes(gdfx.adafactor(0.1), (512, 1024)) == 4 * (512 + 1024)
    assert state_bytes(gdfx.scale_by_sm3(), (512, 1024)) == 4 * (512 + 1024) + 4 * 512 * 1024  # and the momentum
    assert state_bytes(gdfx.novograd(0.1), (512, 1024)) == 4 * 512 * 1024  # the momentum


def test_files_are_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "gdfx" / "optimizers").glob("*.py")}
    assert statistics.median(lengths.values()) <= 100
    assert {name: n for name, n in lengths.items() if n > 200} == {}


def test_page_is_up_to_date(docs_script):
    script = docs_script("make_optimizers")
    assert (ROOT / "docs" / "optimizers.md").read_text() == script.page(), f"run: python {script.__file__}"
