"""From scores to lists: numpy only, the part of fedrec that serves on a device."""
