"""The server's component: Flower wants a plain assignment to find it."""

import fedrec_server.federation.flower_app

app = fedrec_server.federation.flower_app.app
