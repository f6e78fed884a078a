"""Taking part in rounds: the one part of the SDK that needs torch and Flower, in processes of their own.

A *task* is the payload of a signed document of kind "task":

    population, campaign    whose, and which
    created                 seconds since 1970: by a newer signature an older charge can leave its period
    expires                 seconds since 1970; refused afterwards
    model_version           whose items are the model's
    items                   SHA-256 in hex of the item ids, joined by NUL
    node                    model, settings, evaluation, privacy, aggregation: as in a node's `node.json`
    superlink, superlink_ca address "host:port", and the certificate that it must show (PEM)
    bundle                  SHA-256 in hex of the app bundle that SuperLink sends; nothing of it is run
    rounds                  how many there will be

A device joins a campaign under keys made for it alone, charges its budget in full before anything leaves, keeps
what it knows of the user in the memory of one process and forgets it at the end. A session that is cut off for
whatever reason is over: its keys are gone, so nothing can be answered twice, and its charge stays.

    session     one call of `train_if_eligible`: enrol, evaluate, charge, take part, report
    run_task    starts the processes of a session and ends them within 100 ms
    worker      the process that holds the node and runs a SuperNode
    host        the node in that process; forward: how a message of the SuperNode reaches it
"""
