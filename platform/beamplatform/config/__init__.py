"""What a sweep is asked to do: suites, their sections and spaces, trials and the version of the code."""
