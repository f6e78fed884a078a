"""Recommenders, one file each, all behind `fedrec.core.recommender.Recommender`."""
