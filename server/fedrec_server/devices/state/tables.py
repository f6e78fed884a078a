"""The tables of the device service.

A change here needs a version in `migrations/versions`, which a test holds against these tables.
Times are seconds since 1970 by the clock of the process that wrote them; identities, sessions and hashes are bytes.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

METADATA = MetaData()

#: Training jobs: what devices of a population can take part in. `cycle`: rounds between two of one device.
JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("population", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("document", LargeBinary, nullable=False),
    Column("target", Integer, nullable=False),
    Column("least", Integer, nullable=False),
    Column("most", Integer, nullable=False),
    Column("cycle", Integer),
    Column("created", Float, nullable=False),
    Column("changed", Float, nullable=False),
)

#: The devices of one attempt at one round. `joined`: places given so far; `round` 0: not known yet (prepared).
COHORTS = Table(
    "cohorts",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("job", String(32), nullable=False),
    Column("round", Integer, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("target", Integer, nullable=False),
    Column("least", Integer, nullable=False),
    Column("most", Integer, nullable=False),
    Column("joined", Integer, nullable=False),
    Column("deadline", Float, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("retry_after", Float, nullable=False),
    Column("changed", Float, nullable=False),
)
Index("cohorts_by_state", COHORTS.c.state)
Index("cohorts_by_job", COHORTS.c.job)

#: Devices of a cohort. `session`: SHA-256 of the session's secret; `seen`: when the device last called, while the
#: cohort forms; `gone`: it has left.
MEMBERS = Table(
    "members",
    METADATA,
    Column("session", LargeBinary(32), primary_key=True),
    Column("cohort", String(32), nullable=False),
    Column("place", Integer, nullable=False),
    Column("identity", LargeBinary(32), nullable=False),
    Column("users", Integer, nullable=False),
    Column("seen", Float, nullable=False),
    Column("gone", Boolean, nullable=False),
    UniqueConstraint("cohort", "place", name="one_member_a_place"),
    UniqueConstraint("cohort", "identity", name="one_place_an_identity"),
)

#: Questions to the devices of a cohort, numbered from 1. `dtype`: of the vectors that are summed as they come;
#: empty: answers are kept one by one.
STAGES = Table(
    "stages",
    METADATA,
    Column("cohort", String(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(32), nullable=False),
    Column("round", Integer, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("common", String(64), nullable=False),
    Column("common_bytes", Integer, nullable=False),
    Column("deadline", Float, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("dtype", String(8), nullable=False),
    Column("length", Integer, nullable=False),
)

#: Each device's own part of a question.
QUESTIONS = Table(
    "questions",
    METADATA,
    Column("cohort", String(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("own", LargeBinary, nullable=False),
)

#: One row per answer. `content` is NULL for a vector, which is in a partial sum; `refused`: the content is a code.
ANSWERS = Table(
    "answers",
    METADATA,
    Column("cohort", String(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("place", Integer, primary_key=True, autoincrement=False),
    Column("content", LargeBinary),
    Column("refused", Boolean, nullable=False),
)

#: Sums of vectors, one row per front end that took some.
PARTIAL_SUMS = Table(
    "partial_sums",
    METADATA,
    Column("cohort", String(32), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("front_end", String(32), primary_key=True),
    Column("dtype", String(8), nullable=False),
    Column("total", LargeBinary, nullable=False),
)

#: Common parts of questions.
CONTENTS = Table(
    "contents",
    METADATA,
    Column("cohort", String(32), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("content", LargeBinary, nullable=False),
)

#: Tokens that were used, and by which identity (SHA-256).
TOKENS = Table(
    "tokens",
    METADATA,
    Column("hash", LargeBinary(32), primary_key=True),
    Column("device", LargeBinary(32), nullable=False),
    Column("expires", Float, nullable=False),
)

#: How much was taken on a day under a key: a hash of what is limited.
QUOTAS = Table(
    "quotas",
    METADATA,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("key", LargeBinary(16), primary_key=True),
    Column("count", Integer, nullable=False),
)

#: Under which a day's quota keys are hashed; forgotten with the day.
DAY_KEYS = Table(
    "day_keys",
    METADATA,
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("key", LargeBinary(32), nullable=False),
)
