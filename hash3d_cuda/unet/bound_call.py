"""One call of any model's forward: its arguments by the names that its signature has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .call import leaves, take_rows

_TIMESTEP_NAMES = ("timestep", "timesteps", "t")


@dataclass(frozen=True)
class BoundCall:
    """The arguments of a forward, defaults included, and which of them are the sample and the timestep."""

    arguments: dict[str, Any]
    sample_name: str
    timestep_name: str

    @classmethod
    def bind(cls, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> BoundCall:
        """Binds the arguments of ``forward(model, *args, **kwargs)``.

        Raises:
            TypeError: they do not fit, or no argument is the timestep.
        """
        signature = inspect.signature(forward)
        bound = signature.bind(None, *args, **kwargs)
        bound.apply_defaults()
        arguments: dict[str, Any] = {}
        for name, value in list(bound.arguments.items())[1:]:
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL and value:
                raise TypeError(f"expected arguments with names, got {len(value)} more in *{name}")
            if kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            elif kind is not inspect.Parameter.VAR_POSITIONAL:
                arguments[name] = value
        timestep = next((name for name in _TIMESTEP_NAMES if name in arguments), None)
        if timestep is None:
            raise TypeError(f"expected an argument named one of {_TIMESTEP_NAMES}, got {list(arguments)}")
        return cls(arguments, next(iter(arguments)), timestep)

    @property
    def sample(self) -> Tensor:
        return self.arguments[self.sample_name]

    @property
    def timestep(self) -> Any:
        return self.arguments[self.timestep_name]

    @property
    def return_dict(self) -> bool:
        return bool(self.arguments.get("return_dict", True))

    def as_kwargs(self) -> dict[str, Any]:
        """The arguments as keywords of the model's ``forward``."""
        return dict(self.arguments)

    def values(self) -> dict[str, Any]:
        """All arguments but the timestep and ``return_dict``."""
        return {
            name: value for name, value in self.arguments.items() if name not in (self.timestep_name, "return_dict")
        }

    def with_values(self, values: dict[str, Any], timestep: Any) -> BoundCall:
        """The call with others in the place of ``values()`` and of the timestep."""
        return replace(self, arguments={**self.arguments, **values, self.timestep_name: timestep})

    def given(self) -> dict[str, Any]:
        """The arguments besides sample, timestep and ``return_dict``."""
        return {name: value for name, value in self.values().items() if name != self.sample_name}

    def take(self, rows: Sequence[int]) -> BoundCall:
        """The call for some rows of the batch only."""
        return replace(self, arguments=take_rows(self.arguments, rows, len(self.sample)))

    @property
    def can_take(self) -> bool:
        """Whether every tensor has the rows first, or is one number for all."""
        return is_taken_whole(self.arguments, len(self.sample))

    def tensors(self) -> Iterator[Tensor]:
        """All tensors among the arguments."""
        return (value for value in leaves(self.arguments) if isinstance(value, Tensor))


def is_taken_whole(value: Any, rows: int) -> bool:
    """Whether every tensor in ``value`` has ``rows`` rows, or is broadcast over them."""
    tensors = [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]
    return all(tensor.dim() == 0 or len(tensor) in (1, rows) for tensor in tensors)
