"""Jobs: training tasks for a population of devices, over many rounds and runs, that survive any crash."""
