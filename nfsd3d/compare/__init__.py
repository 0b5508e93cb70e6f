"""Many runs: suites, comparison jobs, their records and tables."""
