"""Data that comes with fedrec: MovieTweetings, MIT licence (`movietweetings.LICENSE`)."""
