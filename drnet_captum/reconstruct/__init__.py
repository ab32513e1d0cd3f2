"""The units of a network grouped into named modules, redundant ones represented by others, and what that costs."""
