"""Aggregation rules, one file each.

sum           all replies                              any node moves it as far as it likes
trimmed_mean  the middle values of each coordinate     bounded by the honest values of each coordinate
median        the middle value of each coordinate      the same, up to half of the nodes dishonest
krum          the replies closest to their neighbours  bounded by the spread of the honest replies
norm_filter   replies that are not too long            bounded by the length of the honest replies

All but the sum look at single replies: the server must see them, and what one user changes is not bounded in the
way that a privacy plan needs.
"""
