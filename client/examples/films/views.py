"""What the templates are given: plain values, in words for people. Nothing here changes anything."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fedrec.core.errors import DataError, FedrecError
from fedrec_client.terms.results import Reasons, Recommended
from films.catalogue import TASTES, Catalogue
from films.device import CAREFUL, DEMONSTRATION, MORE, VARIETY
from films.federation import MIN_DEVICES, STAGES, Together
from films.journal import Journal
from films.people import Person
from films.services import ModelService
from films.words import ended, not_now, refused

Values = dict[str, Any]
REASONS_SHOWN = 5
SOURCES = {
    "popular": "Many people like it",
    "exploration": "Something different, to learn what you like",
    "fresh": "New",
    "similar content": "Its genres are yours",
    "pinned": "Chosen for everybody",
}
CONSENTS = (
    (
        "personalize",
        "Personal recommendations",
        "Keep what I rate on this device and use it here. Nothing leaves.",
    ),
    (
        "train",
        "Train together",
        "Send encrypted updates of which only a sum over several devices can be read.",
    ),
    ("metrics", "Counters", "Send three numbers with noise in them, once a day."),
)
STATES = (("charging", "Charging"), ("idle", "Nobody uses it"), ("unmetered", "On Wi-Fi"))
TABS = (
    ("list", "For you"),
    ("search", "Search"),
    ("rated", "Rated"),
    ("privacy", "Privacy"),
    ("device", "Device"),
)
VARIETIES = tuple(zip(VARIETY, ("Off", "Some", "Much"), strict=True))


def person_view(person: Person) -> Values:
    """Everything of one person's column."""
    consent, client = person.client.consent, person.client
    opinions = person.opinions()
    stars = {opinion.film.id: opinion.stars for opinion in opinions}
    values: Values = {
        "number": person.number,
        "name": person.name,
        "revision": person.state,
        "screen": person.screen,
        "consent": consent,
        "stars": stars,
        "rated": [opinion for opinion in opinions if opinion.stars],
        "hidden": [opinion for opinion in opinions if not opinion.stars],
        "training": person.training,
        "message": person.message,
        "tabs": TABS,
    }
    match person.screen.tab:
        case "list" if person.screen.like:
            values |= {"alike": _alike(person), "like": person.catalogue[person.screen.like]}
        case "list":
            values |= _list(person)
        case "search":
            values |= {"found": person.search(person.screen.query), "total": len(person.catalogue)}
        case "privacy":
            values |= _privacy(person)
        case "device":
            eligible = person.eligible()
            values |= {"status": client.status(), "states": _states(person), "eligible": eligible.ok}
            values |= {"not_now": not_now(eligible.reasons), "fetched": person.update}
            values |= {"trouble": person.trouble}
    return values


def service_view(service: ModelService, together: Together) -> Values:
    """The strip on top: the model, who would train, how far training together is."""
    manifest, progress = service.manifest(), together.progress
    willing = together.willing()
    return {
        "version": manifest.version,
        "signed": _moment(manifest.created),
        "films": manifest.n_items,
        "devices": manifest.privacy.get("population", 0),
        "size": _bytes(sum(entry.size for entry in manifest.files.values())),
        "people": together.people,
        "willing": [person.number for person in willing],
        "enough": len(willing) >= MIN_DEVICES,
        "min_devices": MIN_DEVICES,
        "trains": service.trains,
        "progress": progress,
        "stages": [(name, _stage(k, progress.stage, progress.failed)) for k, name in enumerate(STAGES)],
        "revision": together.revision,
    }


def journal_view(journal: Journal) -> Values:
    """The log."""
    return {"entries": journal.newest(), "last": journal.last}


def choices(catalogue: Catalogue) -> Values:
    """What forms offer; the same for everybody."""
    return {
        "genres": catalogue.genres,
        "tastes": TASTES,
        "varieties": VARIETIES,
        "more": MORE,
        "consents": CONSENTS,
    }


def _list(person: Person) -> Values:
    marks = person.marks()
    return {
        "change": person.change.cause,
        "places": [_place(person, place, marks.get(place.item, 0)) for place in person.rec],
    }


def _place(person: Person, place: Recommended, mark: int | None) -> Values:
    try:
        reasons = person.client.explain(place.item, person.rec)
    except DataError:  # a newer model came this very moment: the page asks again
        reasons = None
    return {
        "film": person.catalogue[place.item],
        "mark": mark,
        "why": _why(person, place, reasons),
        "reasons": _reasons(person, reasons),
        "score": place.score,
        "propensity": place.propensity,
    }


def _why(person: Person, place: Recommended, reasons: Reasons | None) -> Values:
    """One line: the strongest reason, or where else the film comes from."""
    best = reasons.because[0] if reasons and reasons.because else None
    if place.source in ("model", "fresh") and best and best.contribution > 0:
        return {"film": person.catalogue[best.item], "value": best.contribution}
    return {"film": None, "text": SOURCES.get(place.source, "Close to your taste")}


def _reasons(person: Person, reasons: Reasons | None) -> Values | None:
    """All that adds up to the score, with the length of a bar for each."""
    if reasons is None or not reasons.because:
        return None
    strongest = sorted(reasons.because, key=lambda each: -abs(each.contribution))
    shown, rest = strongest[:REASONS_SHOWN], strongest[REASONS_SHOWN:]
    widest = abs(shown[0].contribution) or 1.0
    return {
        "lines": [
            {
                "film": person.catalogue[each.item],
                "value": each.contribution,
                "width": max(1, round(100 * abs(each.contribution) / widest)),
            }
            for each in shown
        ],
        "rest": sum(each.contribution for each in rest),
        "others": len(rest),
        "base": reasons.base,
        "score": reasons.score,
    }


def _alike(person: Person) -> list[Values]:
    try:
        found = person.similar(person.screen.like)
    except FedrecError:
        return []
    return [{"film": person.catalogue[each.item], "likeness": each.likeness} for each in found]


def _privacy(person: Person) -> Values:
    report = person.client.privacy_report()
    rounds = sum(int(entry["rounds"]) for entry in report.left if entry["what"] == "sent")
    return {
        "report": report,
        "rounds": rounds,
        "left": [_left(entry) for entry in reversed(report.left)],
        "refused": [
            {"time": _moment(entry["time"]), "reasons": refused(entry["reasons"])}
            for entry in reversed(report.refused)
        ],
        "ended": [
            {"time": _moment(entry["time"]), "text": ended(entry["reason"])}
            for entry in reversed(report.ended)
        ],
        "budgets": list(_budgets(report.period.epsilon, report.lifetime.epsilon, report.limits)),
        "history": [
            {"time": _moment(entry["time"]), "on": [title for name, title, _ in CONSENTS if entry[name]]}
            for entry in reversed(report.consent_history)
        ],
        "careful": person.policy == CAREFUL,
        "demonstration": DEMONSTRATION,
        "real": CAREFUL,
        "receipt": person.receipt and asdict(person.receipt) | {"clock": _moment(person.receipt.time)},
        "sent": _sum(report.left, report.bytes_up),
    }


def _sum(left: Sequence[Values], counted: int) -> str:
    """How much left in all, as far as it is counted."""
    if all("bytes" in entry for entry in left):
        return _bytes(counted)
    if counted:
        return f"At least {_bytes(counted)}"
    return "Not yet counted" if any(entry["what"] == "under way" for entry in left) else "Not known"


def _left(entry: Values) -> Values:
    """One thing that left the device, in words."""
    job = str(entry.get("job", ""))[:8]
    match entry["what"]:
        case "metrics":
            text = f"Counters with noise, epsilon {entry['epsilon']:g}"
        case "under way":
            text = f"An encrypted training update is leaving in job {job}"
        case "cut off":
            text = (
                f"An encrypted training update of job {job}; it was cut off, so it is not known how much left"
            )
        case _:
            text = f"An encrypted training update in round {entry.get('round')} of job {job}"
    size = _bytes(entry["bytes"]) if "bytes" in entry else "not known"
    return {"time": _moment(entry["time"]), "size": size, "text": text}


def _budgets(period: float, lifetime: float, limits: dict[str, float]) -> Iterator[Values]:
    for title, spent, limit in (
        (f"Last {limits['period_days']:g} days", period, limits["period"]),
        ("Ever", lifetime, limits["lifetime"]),
    ):
        yield {"title": title, "spent": spent, "limit": limit, "share": min(100.0, 100 * spent / limit)}


def _states(person: Person) -> list[tuple[str, str, bool]]:
    return [(name, title, person.platform.states[name]) for name, title in STATES]


def _stage(k: int, now: int, failed: bool) -> str:
    if k == now:
        return "failed" if failed else "now"
    return "done" if k < now else "later"


def _moment(seconds: float) -> str:
    return time.strftime(
        "%H:%M" if time.time() - seconds < 43_200 else "%d %b %H:%M", time.localtime(seconds)
    )


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} MB"
