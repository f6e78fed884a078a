"""An experiment: its configuration, its data, its folder and its centralised baseline."""
