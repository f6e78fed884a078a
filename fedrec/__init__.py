"""fedrec: recommenders trained where the data is.

The library holds no network code, no Flower and no global state. See `fedrec.data`, `fedrec.models`,
`fedrec.learning`, `fedrec.privacy`, `fedrec.wire`, `fedrec.ranking` and `fedrec.evaluation`.
"""

__version__ = "0.1.0"
