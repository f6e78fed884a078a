"""Taking part in rounds: in the app's own process, with numpy, cryptography and grpcio; networks need torch.

A *task* is the payload of a signed document of kind "task":

    population, job   whose, and which
    created           seconds since 1970: by a newer signature an older charge can leave its period
    expires           seconds since 1970; refused afterwards
    model_version     whose items are the model's
    items             SHA-256 in hex of the item ids, joined by NUL
    rounds, cycle     how many there will be; a device takes part in one of `cycle` rounds in a row (none: in any)
    node              model, settings, evaluation, privacy, aggregation: as in a node's `node.json`

A device joins a cohort under a key made for it alone, is charged for one round before its masked vector leaves, and
forgets what it knew of the cohort at the end. A session that is cut off is over: its key is gone, so nothing can be
answered twice, and its charge stays.

    session          one call of `train_if_eligible`: check in, evaluate the task, join, report
    cohort_session   one device in one cohort: questions and answers
    participations   what a store holds of the jobs that a device took part in
    device_service   the calls, whatever carries them
"""
