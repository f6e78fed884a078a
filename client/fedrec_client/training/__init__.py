"""Taking part in rounds: the one part of the SDK that needs torch and Flower, in processes of their own.

A *task* is the payload of a signed document of kind "task":

    population, campaign    whose, and which
    expires                 seconds since 1970; refused afterwards
    model_version           whose items are the model's
    items                   SHA-256 in hex of the item ids, joined by NUL
    node                    model, settings, evaluation, privacy, aggregation: as in a node's `node.json`
    superlink, superlink_ca address "host:port", and the certificate that it must show (PEM)
    rounds                  how many there will be

A device joins a campaign under keys made for it alone, charges its budget in full before anything leaves, keeps
everything of the session in memory (a RAM file system where the system has one) and forgets it at the end. A
session that is cut off for whatever reason is over: its keys are gone, so nothing can be answered twice, and its
charge stays.
"""
