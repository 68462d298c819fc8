"""Packing: the many small arrays of a tree as a few large ones, and back.

An optimizer makes about forty operations per array. A U-Net has hundreds of arrays, most of them biases and scales, so
compiling its optimizer leaf by leaf takes as long as compiling the network.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

# Larger arrays stay as they are: copying them costs more than the operations that it saves.
SMALL = 2**12
Tree = Any


class Packing:
  """Packing of the trees that are like `tree`, such as parameters, their gradient and their moving average.

  Arrays of one dtype whose shapes differ at most in the first axis are joined along it.

  Args:
    tree: arrays, abstract or not.
    limit: arrays of `limit` and more elements stay as they are; 0 packs none.

  Example:
    >>> import jax.numpy as jnp
    >>> tree = {"a": jnp.zeros(2), "b": jnp.ones(3), "c": jnp.ones((2, 2)), "d": jnp.ones((4, 2))}
    >>> [x.shape for x in Packing(tree).pack(tree)]
    [(5,), (6, 2)]
  """

  def __init__(self, tree: Tree, limit: int = SMALL):
    leaves, self._structure = jax.tree.flatten(tree)
    self._lengths = [x.shape[0] if x.shape else 1 for x in leaves]
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
      alone = not x.shape or math.prod(x.shape) >= limit
      groups.setdefault(i if alone else (x.shape[1:], x.dtype), []).append(i)
    self._groups = list(groups.values())

  def pack(self, tree: Tree) -> list[jax.Array]:
    """Returns the arrays of `tree`, packed."""
    leaves = self._structure.flatten_up_to(tree)
    packed = [leaves[g[0]] if len(g) == 1 else jnp.concatenate([leaves[i] for i in g]) for g in self._groups]
    return jax.lax.optimization_barrier(packed)  # or the joining would be compiled into each use

  def unpack(self, packed: list[jax.Array]) -> Tree:
    """Returns the tree whose arrays were packed to `packed`."""
    leaves: list[Any] = [None] * len(self._lengths)
    for group, x in zip(self._groups, packed, strict=True):
      parts = [x] if len(group) == 1 else jax.lax.split(x, [self._lengths[i] for i in group])
      for i, part in zip(group, parts, strict=True):
        leaves[i] = part
    return self._structure.unflatten(leaves)

  def pack_within(self, tree: Tree) -> Tree:
    """Packs each part of `tree` that has the structure of the packed tree, such as the moments of an optimizer."""
    return jax.tree.map(lambda t: self.pack(t) if self._is_whole(t) else t, tree, is_leaf=self._is_whole)

  def unpack_within(self, tree: Tree) -> Tree:
    """Undoes `pack_within`."""
    is_packed = lambda t: isinstance(t, list)
    return jax.tree.map(lambda t: self.unpack(t) if is_packed(t) else t, tree, is_leaf=is_packed)

  def _is_whole(self, tree: Tree) -> bool:
    return jax.tree.structure(tree) == self._structure
