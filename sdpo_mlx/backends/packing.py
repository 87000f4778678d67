"""Packs sequences that are forwarded together: shared prefixes once, the rest in padded rows under a budget.

Pure numpy. Prompts form a trie: equal prompts (the rollouts of a group, the failures that see one demonstration) and
equal beginnings (one problem before several feedbacks) are computed once. However sequences are packed, the hidden
states that come back are the same up to rounding (causal attention, right padding), so budget, padding and sharing
change a gradient by no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from sdpo_mlx.backends.base import PREFILL
from sdpo_mlx.types import IntArray

SHORTEST_SHARED = 16  # tokens; a shorter common prefix of different prompts costs more calls than it saves


class Member(NamedTuple):
    """A sequence and its index in the batch."""

    place: int
    prompt: IntArray
    response: IntArray


@dataclass(frozen=True)
class Node:
    """What runs at once after its parent: a prefix that all below share (1, P), or right-padded rows (N, T).

    `parent` is the index in the unit of the node before it (None: a root). Hidden states are read from `rows` nodes.
    """

    ids_NT: IntArray
    parent: int | None
    rows: bool


@dataclass(frozen=True)
class Unit:
    """One forward pass over a tree of nodes, parents first, and what to read from it.

    `take_R` holds flat positions in all the rows, one node after the other, whose hidden states predict the response
    tokens, response after response in the order of `members`; `counts` are the lengths of the responses.
    """

    nodes: tuple[Node, ...]
    take_R: IntArray
    members: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens that are forwarded, padding included."""
        return sum(node.ids_NT.size for node in self.nodes)


@dataclass(frozen=True)
class Tree:
    """A unit as one row of T tokens without padding: each node before those below it, which lie together.

    Token i attends to token j if j <= i < until_T[j]: to itself, to those before it in its node, and to its ancestors.
    `positions_T` count from the root; `take_R` are the places in the row that predict the unit's responses.
    """

    ids_T: IntArray
    positions_T: IntArray
    until_T: IntArray
    take_R: IntArray

    def padded(self, multiple: int) -> Tree:
        """Return the row with tokens at its end, to a multiple of a length, that no other attends to."""
        size = self.ids_T.size
        ends = np.arange(size, size + -size % multiple, dtype=np.int32)
        ids_T, positions_T = (np.append(each, ends * 0) for each in (self.ids_T, self.positions_T))
        return Tree(ids_T, positions_T, np.append(self.until_T, ends + 1), self.take_R)


class _Segment(NamedTuple):
    """Tokens of a tree that follow each other: a shared prefix, or one row; `depth` tokens are above it."""

    node: int
    ids: IntArray
    depth: int


@dataclass(frozen=True, eq=False)
class _Shared:
    """Part of a prompt that several sequences share (compared by identity)."""

    ids: IntArray


class _Branch(NamedTuple):
    """Sequences that diverge after the same shared parts."""

    path: tuple[_Shared, ...]
    members: list[Member]

    @property
    def depth(self) -> int:
        return sum(each.ids.size for each in self.path)

    def length(self, member: Member) -> int:
        """Tokens of its row: the rest of the prompt, and the response except for its last token."""
        return member.prompt.size - self.depth + member.response.size - 1


def pack(
    prompts: Sequence[IntArray],
    responses: Sequence[IntArray],
    budget: int,
    own: Sequence[int] | None = None,
    *,
    share: bool = True,
) -> list[Unit]:
    """Return units that together cover every (prompt, response) once, each of at most `budget` tokens if possible.

    `own` are the indices to cover, if other ranks cover the rest. Without `share` every row holds its whole prompt.
    """
    places = range(len(prompts)) if own is None else own
    members = [Member(i, prompts[i], responses[i]) for i in places]
    if not share:
        return _units([_Branch((), members)], budget)
    # Big-endian bytes sort in the order of the tokens.
    members.sort(key=lambda m: (m.prompt.astype(">u4").tobytes(), m.place))
    alone, branches = _branches_of(members, ())
    return _units([*branches, _Branch((), alone)], budget)


def tree_of(unit: Unit) -> Tree:
    """Return the tokens of a unit of `pack` as one row."""
    segments = _segments(unit)
    stops = np.cumsum([each.ids.size for each in segments]).tolist()
    ends = {each.node: stop for each, stop in zip(segments, stops, strict=True)}
    for place in reversed(range(len(unit.nodes))):
        if (parent := unit.nodes[place].parent) is not None:
            ends[parent] = max(ends[parent], ends[place])
    is_row = [unit.nodes[each.node].rows for each in segments]
    until = [stop if row else ends[each.node] for each, stop, row in zip(segments, stops, is_row, strict=True)]
    row_stops = [stop for stop, row in zip(stops, is_row, strict=True) if row]
    return Tree(
        np.concatenate([each.ids for each in segments]),
        np.concatenate([each.depth + np.arange(each.ids.size) for each in segments]).astype(np.int32),
        np.repeat(until, [each.ids.size for each in segments]).astype(np.int32),
        np.concatenate([np.arange(s - n, s) for s, n in zip(row_stops, unit.counts, strict=True)]).astype(np.int32),
    )


def _segments(unit: Unit) -> list[_Segment]:
    """A unit's prefixes and rows, one after the other as in its nodes, without padding."""
    lasts = iter(unit.take_R[np.cumsum(unit.counts) - 1].tolist())  # what predicts a response's end ends its row
    found, depths, start = list[_Segment](), list[int](), 0
    for place, node in enumerate(unit.nodes):
        depth, width = 0 if node.parent is None else depths[node.parent], node.ids_NT.shape[1]
        depths.append(depth + width)
        for row in node.ids_NT:
            length = next(lasts) - start + 1 if node.rows else width
            start += width if node.rows else 0  # `take_R` counts the rows alone
            found.append(_Segment(place, row[:length], depth))
    return found


def _branches_of(members: list[Member], path: tuple[_Shared, ...]) -> tuple[list[Member], list[_Branch]]:
    """Members (sorted) that continue alone after `path`, and the branches that begin there."""
    if len(members) < 2:
        return members, []
    first, last = members[0].prompt, members[-1].prompt
    # Without a prompt's last token, since that one predicts the response.
    size = min(first.size, last.size) - 1
    depth, reach = sum(each.ids.size for each in path), int(np.append(first[:size] != last[:size], True).argmax())
    equal = reach + 1 == first.size == last.size and first[-1] == last[-1]
    shared = reach - depth >= (1 if equal else SHORTEST_SHARED)
    if shared:
        path = (*path, *(_Shared(first[at : min(at + PREFILL, reach)]) for at in range(depth, reach, PREFILL)))
    alone, branches = (members, []) if equal else (list[Member](), list[_Branch]())
    diverging = [] if equal else members  # part by part
    for _, part in groupby(diverging, key=lambda m: (int(m.prompt[reach]), m.prompt.size > reach + 1)):
        rest, found = _branches_of(list(part), path)
        alone.extend(rest)
        branches.extend(found)
    return ([], [*branches, _Branch(path, alone)]) if shared else (alone, branches)


def _units(branches: Sequence[_Branch], budget: int) -> list[Unit]:
    """Put neighbours in the trie into one unit while they fit, so that what they share is computed once."""
    units: list[Unit] = []
    taken: list[_Branch] = []
    for branch in branches:
        for part in _within(branch.members, budget - branch.depth, branch.length):
            more = _Branch(branch.path, part)
            related = more.path and taken and taken[-1].path[:1] == more.path[:1]
            if taken and (not related or _size([*taken, more]) > budget):
                units.append(_unit(taken))
                taken = []
            taken.append(more)
    return [*units, _unit(taken)] if taken else units


def _size(parts: Sequence[_Branch]) -> int:
    shared = {id(each): each.ids.size for part in parts for each in part.path}
    return sum(shared.values()) + sum(len(p.members) * max(map(p.length, p.members)) for p in parts)


def _within(members: list[Member], budget: int, length: Callable[[Member], int]) -> Iterator[list[Member]]:
    """Yield parts of similar length whose padded size fits; each holds at least one member."""
    part: list[Member] = []
    for member in sorted(members, key=lambda m: (-length(m), m.place)):
        if part and (len(part) + 1) * length(part[0]) > budget:
            yield part
            part = []
        part.append(member)
    if part:
        yield part


def _unit(parts: Sequence[_Branch]) -> Unit:
    nodes: list[Node] = []
    places: dict[int, int] = {}
    take, start = [], 0
    for part in parts:
        parent: int | None = None
        for each in part.path:
            if id(each) not in places:
                places[id(each)] = len(nodes)
                nodes.append(Node(each.ids[None], parent, rows=False))
            parent = places[id(each)]
        rows = [np.concatenate([m.prompt[part.depth :], m.response[:-1]]) for m in part.members]
        padded = np.zeros((len(rows), max(row.size for row in rows)), dtype=np.int32)
        for n, (row, member) in enumerate(zip(rows, part.members, strict=True)):
            padded[n, : row.size] = row
            first = start + n * padded.shape[1] + row.size - member.response.size
            take.append(np.arange(first, first + member.response.size, dtype=np.int32))
        start += padded.size
        nodes.append(Node(padded, parent, rows=True))
    members = [member for part in parts for member in part.members]
    return Unit(
        tuple(nodes),
        np.concatenate(take),
        tuple(member.place for member in members),
        tuple(member.response.size for member in members),
    )
