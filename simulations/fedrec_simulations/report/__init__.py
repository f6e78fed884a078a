"""Reports of runs: tables, plots and example lists in one self-contained HTML page."""
