"""The node's component: Flower wants a plain assignment to find it."""

import fedrec_client.node.flower_app

app = fedrec_client.node.flower_app.app
