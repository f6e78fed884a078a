"""A server that tells half of the devices one thing and the others something else, at every place where it could.

Every pair of different stories is told to every split of a cohort, with devices that work with the server and take
part in both. Safe means: of no honest device are enough shares of *both* secrets given away, since the two together
take all masks off its vector. The same search finds the break where more devices are corrupted than assumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from secagg_helpers import Cohort

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg import _shamir as shamir
from fedrec.secagg.client import Client
from fedrec.secagg.messages import ADVERT_BYTES, SEALED_BYTES, Arrays, advert_digest, to_places, to_rows
from fedrec.secagg.state import ClientState

N = 5
HALF = shamir.ELEMENT_BYTES
Places = tuple[int, ...]
#: Owner and kind of secret to shares by place of the holder.
Known = dict[tuple[int, str], dict[int, bytes]]


@dataclass(frozen=True)
class Story:
    """What some devices are told: who advertised, who shared, who survived."""

    members: Places
    sharers: Places
    survivors: Places


@dataclass
class World:
    """Devices that have advertised, `corrupted` of whom work with the server."""

    corrupted: int
    assumed: int = 0
    answers: dict[tuple[Story, frozenset[int], bool], Known] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cohort = Cohort.of(N, 4, corrupted=self.assumed)
        self.secrets = {p: (c.state.seed, c.state.s_key) for p, c in self.cohort.clients.items()}
        everyone = self.cohort.replies("advertise", {p: {} for p in range(N)}, (), None)
        self.adverts = {place: reply["advert"].tobytes() for place, reply in everyone.items()}
        self.advertised = self._dump(self.cohort.clients)
        # All of them are told of all of them: where stories about the later stages begin.
        clients = self._load(self.advertised, range(N))
        self.dealt = self._deal(clients, tuple(range(N)))
        self.shared = self._dump(clients)
        self.threshold = clients[0]._cohort().threshold

    @property
    def honest(self) -> Places:
        return tuple(range(N - self.corrupted))

    def tell(self, story: Story, told: frozenset[int], *, from_adverts: bool) -> Known:
        """The shares that the server has after it has told these honest devices, and its own, a story."""
        key = (story, told, from_adverts)
        if key not in self.answers:
            self.answers[key] = self._tell(story, told, from_adverts)
        return self.answers[key]

    def broken(self, known: Known) -> list[int]:
        """Honest devices of whom enough shares of both kinds are known."""
        return [
            owner
            for owner in self.honest
            if all(len(known.get((owner, kind), {})) >= self.threshold for kind in ("seed", "key"))
        ]

    def _tell(self, story: Story, told: frozenset[int], from_adverts: bool) -> Known:
        there = [*sorted(told), *range(N - self.corrupted, N)]
        clients = self._load(self.advertised if from_adverts else self.shared, there)
        dealt = self._deal(clients, story.members) if from_adverts else self.dealt
        self._mask(clients, story, dealt)
        held = {p: dict(clients[p].state.held) for p in clients}
        opened = self._open(clients, story)
        known: Known = {}
        for holder, owned in held.items():
            for owner, pair in owned.items():
                for kind, row in (("seed", pair[:HALF]), ("key", pair[HALF:])):
                    if holder not in self.honest or row in opened.get(holder, ()):
                        known.setdefault((owner, kind), {})[holder] = row
        return known

    def _deal(self, clients: dict[int, Client], members: Places) -> dict[int, dict[int, bytes]]:
        digests = [advert_digest(p, self.adverts[p]) for p in members]
        everyone: Arrays = {"cohort": to_places(members), "digests": to_rows(digests, 32)}
        dealt = {}
        for place in list(clients):
            near = [p for p in members if p != place]
            request = everyone | {"adverts": to_rows((self.adverts[p] for p in near), ADVERT_BYTES)}
            reply = self._asked(clients, place, "share", request)
            if reply is not None:
                dealt[place] = dict(zip(near, (row.tobytes() for row in reply["shares"]), strict=True))
        return dealt

    def _mask(self, clients: dict[int, Client], story: Story, dealt: dict[int, dict[int, bytes]]) -> None:
        lost = bytes(SEALED_BYTES)
        for place in list(clients):
            near = [p for p in story.sharers if p != place]
            rows = to_rows((dealt.get(p, {}).get(place, lost) for p in near), SEALED_BYTES)
            self._asked(clients, place, "mask", {"sharers": to_places(story.sharers), "shares": rows})

    def _open(self, clients: dict[int, Client], story: Story) -> dict[int, list[bytes]]:
        signed = {}
        for place in list(clients):
            reply = self._asked(clients, place, "confirm", {"survivors": to_places(story.survivors)})
            if reply is not None:
                signed[place] = reply["signature"].tobytes()
        opened = {}
        for place in list(clients):
            others = [p for p in signed if p != place]
            request = {"signers": to_places(others), "signatures": to_rows((signed[p] for p in others), 64)}
            reply = self._asked(clients, place, "unmask", request)
            if reply is not None:
                opened[place] = [row.tobytes() for row in reply["opened"]]
        return opened

    def _asked(self, clients: dict[int, Client], place: int, stage: str, request: Arrays) -> Arrays | None:
        """A reply; whoever refuses is out."""
        client = clients[place]
        try:
            if stage == "mask":
                return client.mask(request, self.cohort.vectors[place])
            reply: Arrays = getattr(client, stage)(request)
        except AggregationRefused:
            del clients[place]
            return None
        return reply

    def _dump(self, clients: dict[int, Client]) -> dict[int, bytes]:
        return {place: client.state.dump() for place, client in clients.items()}

    def _load(self, dumped: dict[int, bytes], there: range | list[int]) -> dict[int, Client]:
        cohort = self.cohort
        return {p: Client(cohort.terms, cohort.identities[p], ClientState.load(dumped[p])) for p in there}


def lists(of: Places, least: int) -> Iterator[Places]:
    return (some for size in range(least, len(of) + 1) for some in itertools.combinations(of, size))


def splits(honest: Places) -> Iterator[tuple[frozenset[int], frozenset[int]]]:
    for one in lists(honest, 0):
        yield frozenset(one), frozenset(honest) - frozenset(one)


def both(one: Known, other: Known) -> Known:
    return {key: one.get(key, {}) | other.get(key, {}) for key in one.keys() | other.keys()}


def late_stories(least: int) -> list[Story]:
    everyone = tuple(range(N))
    return [Story(everyone, s2, s3) for s2 in lists(everyone, least) for s3 in lists(s2, least)]


def outcomes(world: World, stories: list[Story]) -> Iterator[tuple[bool, list[int]]]:
    """For every two stories and every split: whether anything was opened, and who was broken."""
    for one, other in itertools.combinations(stories, 2):
        for here, there in splits(world.honest):
            known = both(
                world.tell(one, here, from_adverts=False), world.tell(other, there, from_adverts=False)
            )
            opened = any(holder in world.honest for rows in known.values() for holder in rows)
            yield opened, world.broken(known)


@pytest.mark.parametrize(("corrupted", "assumed"), [(0, 0), (1, 0), (2, 0), (3, 3)])
def test_two_stories_of_sharers_and_survivors_break_no_one(corrupted: int, assumed: int) -> None:
    world = World(corrupted, assumed)
    assert 2 * world.threshold > N + corrupted
    found = list(outcomes(world, late_stories(4)))
    assert not any(broken for _, broken in found)
    # Had nothing been opened at all, this would have shown nothing.
    assert any(opened for opened, _ in found)


def test_the_search_finds_the_break_where_more_are_corrupted_than_assumed() -> None:
    world = World(corrupted=3)
    assert 2 * world.threshold <= N + 3 and world.threshold > 3
    stories = [
        Story(tuple(range(N)), tuple(range(N)), s) for s in ((0, 1, 2, 3, 4), (1, 2, 3, 4), (0, 2, 3, 4))
    ]
    assert any(broken for _, broken in outcomes(world, stories))
    # With the shares of both kinds the secrets of device 0 are indeed the server's.
    one = world.tell(stories[0], frozenset({0}), from_adverts=False)
    other = world.tell(stories[1], frozenset({1}), from_adverts=False)
    known = both(one, other)
    seed, key = (
        shamir.combine({holder + 1: row for holder, row in known[0, kind].items()}, world.threshold)
        for kind in ("seed", "key")
    )
    assert (seed, key) == world.secrets[0]


def advert_stories(world: World, members: Places, told: frozenset[int]) -> Iterator[Known]:
    """What the server gets from a part of the cohort that is told of these members, with and without a victim."""
    present = tuple(p for p in members if p in told or p not in world.honest)
    for survivors in (present, present[1:]):
        yield world.tell(Story(members, present, survivors), told, from_adverts=True)


@pytest.mark.parametrize("corrupted", [0, 2])
def test_two_stories_of_who_advertised_break_no_one(corrupted: int) -> None:
    """Shares dealt under one list of adverts do not open under another, so the parts cannot help each other."""
    world = World(corrupted)
    opened = set()
    for one, other in itertools.combinations(lists(tuple(range(N)), 4), 2):
        for here, there in splits(world.honest):
            parts = (advert_stories(world, one, here), advert_stories(world, other, there))
            for known in itertools.starmap(both, itertools.product(*map(list, parts))):
                assert not world.broken(known)
                opened.add(any(holder in world.honest for rows in known.values() for holder in rows))
    assert opened == {True, False}


def test_shares_dealt_under_one_list_of_adverts_do_not_open_under_another() -> None:
    world, four = World(corrupted=0), (0, 1, 2, 3)
    clients = world._load(world.advertised, list(four))
    world._deal(clients, four)
    for place, client in clients.items():
        rows = to_rows((world.dealt[p][place] for p in four if p != place), SEALED_BYTES)
        with pytest.raises(AggregationRefused) as refused:
            client.mask({"sharers": to_places(four), "shares": rows}, world.cohort.vectors[place])
        assert refused.value.reason == Reason.CIPHERTEXT
