"""Components of the Flower app; everything is in the installed fedrec packages."""
