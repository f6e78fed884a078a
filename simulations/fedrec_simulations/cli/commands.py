"""Every command of `fedrec`: data, training, evaluation, privacy."""

from __future__ import annotations

from fedrec_server.cli.lazy import Group

PROGRAM = Group(
    "Federated recommenders: train where the data is, recommend on the device.",
    {
        "demo": "fedrec_simulations.cli.demo:demo",
        "data": Group(
            "Data sets: describe, prepare.",
            {
                "describe": "fedrec_simulations.cli.data:describe",
                "prepare": "fedrec_simulations.cli.data:prepare_split",
            },
        ),
        "train": "fedrec_simulations.cli.train:train",
        "tune": "fedrec_simulations.cli.tune:tune",
        "evaluate": "fedrec_simulations.cli.evaluate:evaluate",
        "recommend": "fedrec_simulations.cli.recommend:recommend",
        "compare": "fedrec_simulations.cli.compare:compare",
        "privacy": Group(
            "Privacy budgets: plan, sweep, audit, attack, statement, ledger.",
            {
                "plan": "fedrec_simulations.cli.privacy_plan:plan",
                "sweep": "fedrec_simulations.cli.privacy_sweep:sweep",
                "audit": "fedrec_simulations.cli.privacy_audit:audit",
                "attack": "fedrec_simulations.cli.privacy_attack:privacy_attack",
                "statement": "fedrec_simulations.cli.privacy_statement:statement",
                "ledger": "fedrec_server.cli.ledger:ledger",
            },
        ),
        "config": Group(
            "Show a resolved configuration, its task for an operator, or the schema of all.",
            {
                "show": "fedrec_simulations.cli.config_commands:show",
                "task": "fedrec_simulations.cli.config_commands:task",
                "schema": "fedrec_simulations.cli.config_commands:schema",
            },
        ),
        "doctor": "fedrec_simulations.cli.doctor:doctor",
    },
)
