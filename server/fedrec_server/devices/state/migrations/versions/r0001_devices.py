"""Jobs, cohorts, members, stages, answers, tokens and quotas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """From nothing."""
    _jobs_and_cohorts()
    _stages()
    op.create_table(
        "tokens",
        sa.Column("hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("device", sa.LargeBinary(32), nullable=False),
        sa.Column("expires", sa.Float, nullable=False),
    )
    op.create_table(
        "quotas",
        _number("day"),
        sa.Column("key", sa.LargeBinary(16), primary_key=True),
        sa.Column("count", sa.Integer, nullable=False),
    )
    op.create_table("day_keys", _number("day"), sa.Column("key", sa.LargeBinary(32), nullable=False))


def _number(name: str) -> sa.Column[int]:
    """A part of a primary key."""
    return sa.Column(name, sa.Integer, primary_key=True, autoincrement=False)


def _jobs_and_cohorts() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("population", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("target", "least", "most")),
        sa.Column("cycle", sa.Integer),
        *(sa.Column(name, sa.Float, nullable=False) for name in ("created", "changed")),
    )
    op.create_table(
        "cohorts",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("job", sa.String(32), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("target", "least", "most", "joined")),
        sa.Column("deadline", sa.Float, nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        *(sa.Column(name, sa.Float, nullable=False) for name in ("retry_after", "changed")),
    )
    op.create_index("cohorts_by_state", "cohorts", ["state"])
    op.create_index("cohorts_by_job", "cohorts", ["job"])
    op.create_table(
        "members",
        sa.Column("session", sa.LargeBinary(32), primary_key=True),
        sa.Column("cohort", sa.String(32), nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("identity", sa.LargeBinary(32), nullable=False),
        sa.Column("users", sa.Integer, nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
        sa.Column("gone", sa.Boolean, nullable=False),
        sa.UniqueConstraint("cohort", "place", name="one_member_a_place"),
        sa.UniqueConstraint("cohort", "identity", name="one_place_an_identity"),
    )


def _stages() -> None:
    op.create_table(
        "stages",
        sa.Column("cohort", sa.String(32), primary_key=True),
        _number("number"),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("common", sa.String(64), nullable=False),
        sa.Column("common_bytes", sa.Integer, nullable=False),
        sa.Column("deadline", sa.Float, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.Column("dtype", sa.String(8), nullable=False),
        sa.Column("length", sa.Integer, nullable=False),
    )
    op.create_table(
        "questions",
        sa.Column("cohort", sa.String(32), primary_key=True),
        _number("number"),
        _number("place"),
        sa.Column("own", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "answers",
        sa.Column("cohort", sa.String(32), primary_key=True),
        _number("number"),
        _number("place"),
        sa.Column("content", sa.LargeBinary),
        sa.Column("refused", sa.Boolean, nullable=False),
    )
    op.create_table(
        "partial_sums",
        sa.Column("cohort", sa.String(32), primary_key=True),
        _number("number"),
        sa.Column("front_end", sa.String(32), primary_key=True),
        sa.Column("dtype", sa.String(8), nullable=False),
        sa.Column("total", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "contents",
        sa.Column("cohort", sa.String(32), primary_key=True),
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
