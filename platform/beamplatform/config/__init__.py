"""The configuration of a sweep: suites, sections, search spaces, trials and the version of the code."""
