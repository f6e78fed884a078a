"""Audits: experiments that try to refute a stated guarantee, and the bugs that they must be able to find.

An audit gives a lower bound on what was really spent. It can show that a claim is false, never that it is true.
"""
