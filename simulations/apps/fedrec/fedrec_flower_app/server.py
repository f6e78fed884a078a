"""The server's component: Flower wants a plain assignment to find it."""

import fedrec_server.flower_app

app = fedrec_server.flower_app.app
