"""Every command of `fedrec-server`: keys, models, services, training jobs, a federation, the ledger."""

from __future__ import annotations

from fedrec_server.cli.lazy import Group

PROGRAM = Group(
    "The operator's program: sign and serve models, train with devices, keep account of privacy.",
    {
        "up": "fedrec_server.cli.server:up",
        "status": "fedrec_server.cli.server:status",
        "restart": "fedrec_server.cli.server:restart",
        "down": "fedrec_server.cli.server:down",
        "keys": Group(
            "Keys that sign models: make them, replace them, renew what they signed.",
            {
                "init": "fedrec_server.cli.keys:init",
                "rotate-online": "fedrec_server.cli.keys:rotate_online",
                "rotate-root": "fedrec_server.cli.keys:rotate_root",
                "renew": "fedrec_server.cli.keys:renew",
            },
        ),
        "model": Group(
            "Models that devices use: publish, promote, roll back, bundle.",
            {
                "publish": "fedrec_server.cli.model:publish",
                "list": "fedrec_server.cli.model:list_",
                "show": "fedrec_server.cli.model:show",
                "verify": "fedrec_server.cli.model:verify",
                "refresh": "fedrec_server.cli.model:refresh",
                "promote": "fedrec_server.cli.model:promote",
                "rollback": "fedrec_server.cli.model:rollback",
                "bundle": "fedrec_server.cli.model:bundle",
            },
        ),
        "certs": Group(
            "Certificates of the server and its apps: make them, renew them.",
            {
                "init": "fedrec_server.cli.certificates:init",
                "renew": "fedrec_server.cli.certificates:renew",
            },
        ),
        "service": Group(
            "The model service: hands signed models to devices over gRPC.",
            {"start": "fedrec_server.cli.service:start"},
        ),
        "devices": Group(
            "The device service: front ends that devices train through.",
            {"start": "fedrec_server.cli.devices:start", "relay": "fedrec_server.cli.devices:relay"},
        ),
        "job": Group(
            "Training jobs: devices that are here train together, round by round.",
            {
                "create": "fedrec_server.cli.job:create",
                "list": "fedrec_server.cli.job:list_",
                "start": "fedrec_server.cli.job:start",
                "status": "fedrec_server.cli.job:status",
                "pause": "fedrec_server.cli.job:pause",
                "resume": "fedrec_server.cli.job:resume",
                "abort": "fedrec_server.cli.job:abort",
                "publish": "fedrec_server.cli.job:publish",
                "work": "fedrec_server.cli.job:work",
            },
        ),
        "jobs": Group(
            "The process that keeps all jobs going.",
            {"run": "fedrec_server.cli.job:run"},
        ),
        "sites": Group(
            "A federation of sites on any host: SuperLink, gateway, terms, runs.",
            {
                "init": "fedrec_server.cli.sites:init",
                "task": "fedrec_server.cli.sites:task",
                "superlink": "fedrec_server.cli.sites:superlink",
                "gateway": "fedrec_server.cli.sites:gateway",
                "run": "fedrec_server.cli.sites:run",
            },
        ),
        "node": Group(
            "Sites: enrol and start on the site; admit, list, remove at the server.",
            {
                "enrol": "fedrec_server.cli.node:enrol",
                "start": "fedrec_server.cli.node:start",
                "admit": "fedrec_server.cli.node:admit",
                "list": "fedrec_server.cli.node:list_",
                "remove": "fedrec_server.cli.node:remove",
            },
        ),
        "federation": Group(
            "A federation on this machine: SuperLink, gateway, nodes, over TLS.",
            {
                "up": "fedrec_server.cli.federation:up",
                "status": "fedrec_server.cli.federation:status",
                "run": "fedrec_server.cli.federation:run",
                "down": "fedrec_server.cli.federation:down",
            },
        ),
        "ledger": "fedrec_server.cli.ledger:ledger",
        "doctor": "fedrec_server.cli.doctor:doctor",
    },
)
