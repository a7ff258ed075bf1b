"""Optax's types: of transforms, which gdfx's are too, and aliases for annotations."""

from collections.abc import Callable
from typing import Any, TypeAlias

from gdfx import GradientTransformation as _Transform, Schedule as Schedule, as_transformation, from_functions
from gdfx.core import Tree

OptState: TypeAlias = Tree
Params: TypeAlias = Tree
Updates: TypeAlias = Tree
ArrayTree: TypeAlias = Tree
ScalarOrSchedule: TypeAlias = Any
MaskOrFn: TypeAlias = Any
TransformInitFn: TypeAlias = Callable[[Params], OptState]
TransformUpdateFn: TypeAlias = Callable[..., tuple[Updates, OptState]]
TransformUpdateExtraArgsFn: TypeAlias = Callable[..., tuple[Updates, OptState]]
ShouldSkipUpdateFunction: TypeAlias = Callable[..., Any]
ConditionFn: TypeAlias = Callable[..., Any]
StatefulSchedule: TypeAlias = Any


class _OfOptax(type):
    """The type of a type that all transforms are of, and that makes them from two functions."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _Transform)

    def __call__(cls, init: TransformInitFn, update: TransformUpdateFn) -> Any:
        return from_functions(init, update)


class GradientTransformation(metaclass=_OfOptax):
    """`GradientTransformation(init, update)` makes a transform; `isinstance` holds for each one of gdfx."""


class GradientTransformationExtraArgs(GradientTransformation):
    """The same: every transform of gdfx takes extra arguments."""


def with_extra_args_support(tx: Any) -> Any:
    """The transform itself: every one takes extra arguments."""
    return as_transformation(tx)
