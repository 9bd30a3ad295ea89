"""Long runs that look for leaks and for state that a kill destroys; the results are in docs/reliability.md."""
