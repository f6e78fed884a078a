"""Recommenders, one file each, all behind `fedrec.models.base.Recommender`."""
