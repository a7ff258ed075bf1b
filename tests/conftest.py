"""Set-up of every test: strict promotion, a compilation cache, reproducible random examples."""

import importlib
import os
from importlib.metadata import version
from pathlib import Path

# The environment counts only while it is read: at the first import of jax and of matplotlib.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# What is run once is better compiled fast than well: in half of the time or less. XLA's own simplifications stay.
# `XLA_FLAGS= pytest` compiles as users do. A flag that jaxlib does not have would end the process.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(user_cache / "gdfx" / f"jax-{jax.__version__}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# Most of an example's time is compilation, which no deadline can foresee.
# The fixtures in use (`x64`) hold for all examples of a test and need no reset in between.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=15,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.register_profile(
    "thorough",
    hypothesis.settings.get_profile("default"),
    derandomize=False,
    max_examples=300,
    print_blob=True,
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def x64():
    """Runs the test with 64-bit types."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def docs_script(monkeypatch):
    """A function that imports the script of this name from docs/."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "docs"))
    return importlib.import_module


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    """Lets go of a module's compiled programs, which would add up to gigabytes."""
    yield
    jax.clear_caches()
