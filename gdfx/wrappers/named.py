"""Chains whose links have names of one's own, or are kept in one piece."""

from typing import Any

from ..composition import _check_order, needs_of
from ..core import GradientTransformation, Tree, as_transformation
from ..pytrees import pytree, static
from ..tree import cast_like, check_like, check_params, widen
from .wrapper import Wrapper


@pytree
class NamedChain(GradientTransformation):
    """Passes the updates through `transforms` in order; made by `named_chain`."""

    names: tuple[str, ...] = static()
    transforms: tuple[GradientTransformation, ...]

    def init(self, params):
        check_params(params)
        _check_order(self.transforms, self)
        return {name: link.init(params) for name, link in zip(self.names, self.transforms, strict=True)}

    def update(self, updates, state, params=None, **extra):
        if not isinstance(state, dict) or state.keys() != set(self.names):
            found = (
                f"a dict of {', '.join(map(str, state))}" if isinstance(state, dict) else f"a {type(state).__name__}"
            )
            raise ValueError(
                f"the state is {found}, expected a dict of {', '.join(self.names)}, the names in {self}. "
                "Was the state made by another optimizer?"
            )
        if params is not None and not any(link.per_example for link in self.transforms[:1]):
            check_like(updates, params, "grads", "params")
        new, states = widen(updates), {}
        for name, link in zip(self.names, self.transforms, strict=True):
            new, states[name] = link.update(new, state[name], params, **extra)
        return cast_like(new, updates), states

    def eval_params(self, state: Tree, params: Tree) -> Tree:
        for name, link in zip(self.names, self.transforms, strict=True):
            params = link.eval_params(state[name], params)
        return params

    @property
    def needs(self):
        return needs_of(self.transforms)

    @property
    def takes(self):
        return next((link.takes for link in self.transforms if link.takes), None)

    @property
    def makes_steps(self):
        return any(link.makes_steps for link in self.transforms)

    @property
    def differentiable(self):
        return all(link.differentiable for link in self.transforms)

    def __repr__(self):
        pairs = (f"({name!r}, {link!r})" for name, link in zip(self.names, self.transforms, strict=True))
        return f"named_chain({', '.join(pairs)})"


def named_chain(*args: tuple[str, Any]) -> NamedChain:
    """Passes the updates through transforms with names: `named_chain(("clip", clip(1.0)), ("opt", adam(1e-3)))`.

    The state is a dict of theirs by name, in which optimizers and chains keep states of their own:
    `state["opt"]["scale_by_adam"].mu`. Each counts its own updates. Between the links half-precision updates travel as
    float32.

    Raises:
        TypeError: an argument is no pair of a name and a transform.
        ValueError: two have the same name.
    """
    for pair in args:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise TypeError(f"named_chain: {pair!r} is no pair of a name and a transform; without names see chain")
    names = tuple(name for name, _ in args)
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"named_chain: two transforms have the name {twice[0]!r}, expected one for each name")
    return NamedChain(names, tuple(as_transformation(transform) for _, transform in args))


@pytree
class whole(Wrapper):
    """Keeps a chain or an optimizer in one piece where it stands in a chain: with a state, and a count, of its own.

    In a plain `chain` its links would be spliced. Of `chain(clip(1.0), whole(adam(1e-3)))` the state of Adam is
    `state[1]`, as optax has it. It is that of the transform, with nothing around.
    """

    def init(self, params):
        return self.transform.init(params)

    def update(self, updates, state, params=None, **extra):
        return self.transform.update(updates, state, params, **extra)

    def eval_params(self, state, params):
        return self.transform.eval_params(state, params)
