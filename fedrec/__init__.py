"""fedrec: recommenders trained where the data is.

The library holds no network code, no Flower and no global state. Everything stands on `fedrec.core`.
"""

__version__ = "0.1.0"
