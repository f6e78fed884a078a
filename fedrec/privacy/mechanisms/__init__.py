"""Privacy mechanisms: one file each, with its stage, its releases, its sentences, its adversary and its audit view.

central      node: the sum as it is         server: adds all the noise; it sees clean sums
distributed  node: integers and a share     server: decodes; no sum without noise exists anywhere
             of the noise for each user
local        node: full noise for each      server: nothing to do
             user
interaction  node: trained with noise       server: nothing to do
"""
