"""Run by Alembic, within the transaction that `database.migrate` began."""

from __future__ import annotations

from alembic import context

from fedrec_server.devices.state.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
